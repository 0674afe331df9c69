"""Why a run does not repeat its reference, although its state was equal after the load.

1. The reference is run again, every operation around the first difference written down. If it does not repeat itself,
   nobody can say anything of the resume: the job is not deterministic, and the first operation that differs is named.
2. What differed is run again too, from the same checkpoint, and written down likewise: without saves first, and where
   that shows nothing, with them. The first operation that differs names the cause as closely as its effect allows: what
   it is made of is in no state that is saved.
3. Where what differs was there before the first operation, it came with the checkpoint: then the start that has saved
   it is looked at in the same way, up to that save, if it had itself been resumed.

A leg that fails shows nothing: what it did not do would compare as equal. Where it is the reference that cannot be run
again, nobody knows whether the job repeats itself.
"""

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from ckptrun.checks.checkpoints import compare_checkpoints
from ckptrun.checks.ignored import Ignored
from ckptrun.checks.operation import Operation, first_operation
from ckptrun.engine.commit import is_committed
from ckptrun.engine.locate import locate
from ckptrun.errors import RankFailedError
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.ledger_comparison import compare_ledgers, step_like
from ckptrun.evidence.mismatch import Mismatch
from ckptrun.evidence.starts import Start
from ckptrun.evidence.trace_items import What
from ckptrun.evidence.verdict import Check, Status
from ckptrun.proof.leg_end import check_leg
from ckptrun.proof.material import Material
from ckptrun.proof.subject import Run, StartRun
from ckptrun.run.leg import TraceWindow

__all__ = ["Diagnosis", "Suspect", "diagnose"]

# More steps than these are not watched from the resume on, only the two in which the difference shows; of those before,
# one line each tells whether it was there already.
_WATCHED_STEPS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """What needs an explanation."""

    mismatch: Mismatch | None
    """The first step that differed; None: only the state at the end did."""
    start: Start
    """In which start."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found out."""

    is_deterministic: bool
    text: str
    blame: str | None = None
    first_difference: Difference | None = None
    is_of_saving: bool = False
    """Whether it is saving that changes what is computed, not a resume."""
    is_known: bool = True
    """Whether the reference could be run again, so that something can be said of the resume."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The first operation of a start that the reference did otherwise."""

    operation: Operation
    start: Start
    is_of_saving: bool
    """Whether it comes out as in the reference when the start saves nothing."""


def diagnose(suspect: Suspect, material: Material, *, start_run: StartRun) -> Diagnosis:
    """Find the cause.

    Args:
        suspect: What differed.
        material: The legs so far.
        start_run: Starts another leg.
    """
    inquiry = _Inquiry(suspect, material, start_run)
    try:
        return inquiry.run()
    except RankFailedError as error:
        # Before the reference was repeated nothing is known; afterwards only the operation cannot be named.
        if not inquiry.reference_repeats:
            text = f"whether the job repeats itself is not known: {error}"
            return Diagnosis(is_deterministic=False, is_known=False, text=text)
        return inquiry.unexplained(f"what was run again to find the cause: {error}")


class _Inquiry:
    def __init__(self, suspect: Suspect, material: Material, start_run: StartRun) -> None:
        self._suspect = suspect
        self._material = material
        self._start_run = start_run
        # On another mesh a resumed start is held against an uninterrupted one on that mesh.
        self._is_later = material.subject.reshapes and suspect.start.index > 0
        self._reference = material.reference_of_later if self._is_later else material.reference
        self._ranks = self._reference.ranks
        self.reference_repeats = False
        """Whether it is known that the reference comes out the same when it is run again."""

    def run(self) -> Diagnosis:
        mismatch, start = self._suspect.mismatch, self._suspect.start
        if mismatch is None:
            return self._of_the_end()
        window = self._window(start, mismatch.step)
        again = self._reference_again("traced_reference", window)
        repeated = compare_ledgers(self._reference.folder, again, ranks=self._ranks, last_step=mismatch.step)
        if repeated.first is not None:
            return self._not_deterministic(repeated.first)
        if self._is_interpreter_another:
            other = self._reference_again("reference_in_another_interpreter", window, fresh=True)
            repeated = compare_ledgers(self._reference.folder, other, ranks=self._ranks, last_step=mismatch.step)
            if repeated.first is not None:
                return self._by_interpreter(repeated.first)
        self.reference_repeats = True
        counted_as = step_like(self._reference.folder, self._material.run.folder, mismatch)
        if counted_as is not None:
            return self._miscounted(mismatch, counted_as)
        if start.resumed_from is not None and self._checkpoint(start) is None:
            others = [
                other for other in self._material.resumes if other.index < start.index and self._checkpoint(other)
            ]
            if not others:
                return self.unexplained("the checkpoint that it was resumed from is gone (checkpoint.keep_last)")
            # An earlier one will do: what it began with was equal too, and it went on without knowing of the later one.
            start = others[-1]
            window = self._window(start, mismatch.step)
            again = self._reference_again(f"traced_reference_of_start_{start.index + 1}", window)
        found = self._first_operation(start, again, window, name="traced_run")
        if found is not None and found.operation.what is What.state:
            # It was there before anything was watched.
            step = found.operation.step
            window = TraceWindow(first_step=max(start.step + 1, step - 1), last_step=step)
            again = self._reference_again("traced_reference_earlier", window)
            found = self._first_operation(start, again, window, name="traced_run_earlier")
        if found is None:
            return self.unexplained("it did not show again when every operation was watched")
        return self._named(self._followed_back(found), mismatch)

    @property
    def _is_interpreter_another(self) -> bool:
        """Whether what differs came from another interpreter, or from what one has saved."""
        return any(start.fresh for start in self._material.starts[: self._suspect.start.index + 1])

    def _window(self, start: Start, last_step: int) -> TraceWindow:
        begin = start.step + 1
        if last_step - begin >= _WATCHED_STEPS:
            begin = last_step - 1
        return TraceWindow(first_step=min(begin, last_step), last_step=last_step)

    def _reference_again(self, name: str, window: TraceWindow, *, fresh: bool = False) -> Path:
        """Run the reference once more, as far as the window goes."""
        begin = None
        if self._is_later:
            begin = self._checkpoint(self._material.resumes[0]) or self._material.run.checkpoints
        run = self._beside(name, resume_from=begin)
        begins_as = self._material.resumes[0].index if self._is_later else None
        what = {"saves_at_end_only": True, "trace": window, "begins_as": begins_as, "fresh": fresh}
        self._run(run, stop_at=window.last_step, **what)
        return run.folder

    def _beside(self, name: str, *, saves: bool = True, resume_from: str | None = None) -> Run:
        return self._material.subject.run(name, is_later=self._is_later, saves=saves, resume_from=resume_from)

    def _run(self, run: Run, *, stop_at: int | None = None, **what: object) -> None:
        """Run one more leg to its end.

        Raises:
            RankFailedError: It did not come so far.
        """
        ended = self._start_run(run, stop_at=stop_at, **what)
        last_step = self._material.subject.steps if stop_at is None else stop_at
        check_leg(run.name.replace("_", " "), run, ended, last_step=last_step)

    def _first_operation(self, start: Start, reference: Path, window: TraceWindow, *, name: str) -> _Found | None:
        """Run ``start`` once more: from the same checkpoint, without saves if it had one, else with them."""
        # What loaded nothing can differ only by what it saves.
        for saves in (False, True) if start.resumed_from is not None else (True,):
            leg = f"{name}_with_saves" if saves and start.resumed_from is not None else name
            run = self._beside(leg, saves=saves, resume_from=self._checkpoint(start) or start.resumed_from)
            resumed = start.index > 0
            what = {"saves_after_resume": saves and resumed, "begins_as": start.index or None, "fresh": start.fresh}
            self._run(run, stop_at=window.last_step, trace=window, **what)
            operation = first_operation(reference, run.folder, ranks=self._ranks)
            if operation is not None:
                return _Found(operation=operation, start=start, is_of_saving=saves)
        return None

    def _followed_back(self, found: _Found) -> _Found:
        """Where a start already began with what differs: what the start that has saved it did before."""
        start = found.start
        earlier = [
            other
            for other in self._material.starts[: start.index]
            if start.resumed_from in other.committed and self._checkpoint(other) is not None
        ]
        if not earlier or not found.operation.is_found(resumed_at=start.step):
            return found
        window = self._window(earlier[-1], start.step)
        reference = self._reference_again(f"traced_reference_of_start_{earlier[-1].index + 1}", window)
        name = f"traced_start_{earlier[-1].index + 1}"
        cause = self._first_operation(earlier[-1], reference, window, name=name)
        return found if cause is None else self._followed_back(cause)

    def _checkpoint(self, start: Start) -> str | None:
        """The checkpoint that ``start`` went on from, or a copy of it."""
        if start.resumed_from is None:
            return None
        kept = self._material.kept.get(str(locate(start.resumed_from)), start.resumed_from)
        return kept if is_committed(locate(kept)) else None

    def _named(self, found: _Found, mismatch: Mismatch) -> Diagnosis:
        operation, start = found.operation, found.start
        resumed_at = start.step if start.resumed_from is not None else None
        what = operation.text(resumed_at=resumed_at)
        is_own = start is self._suspect.start
        if is_own and _is_decided_before(mismatch, operation):
            blame, shown = mismatch.component, str(mismatch)
            first = mismatch.as_difference().with_details(operation=what)
        else:
            blame = operation.component
            shown = f"{what} ({operation.values})" if operation.values else what
            first = operation.as_difference().with_details(operation=what, ledger=mismatch.as_difference().as_json())
        if found.is_of_saving:
            text = f"saving changes what is computed: {shown} differs from the run that saves nothing"
        else:
            text = f"hidden state: every leaf was equal after the load, and yet {shown} differs"
        if not is_own:
            text = f"{text}, in start {start.index + 1}, which saved the checkpoint that was resumed from next"
        return Diagnosis(
            is_deterministic=True, text=text, blame=blame, first_difference=first, is_of_saving=found.is_of_saving
        )

    def _miscounted(self, mismatch: Mismatch, step: int) -> Diagnosis:
        text = f"step {mismatch.step} did, bit for bit, what step {step} of the reference does: steps are miscounted"
        first = replace(mismatch.as_difference(), component="progress")
        return Diagnosis(is_deterministic=True, text=text, blame="progress", first_difference=first)

    def unexplained(self, why: str) -> Diagnosis:
        """The reference repeats itself, and what differs has no name."""
        mismatch = self._suspect.mismatch
        blame = mismatch.component if mismatch is not None else None
        if self._suspect.start.resumed_from is None:
            text = f"saving changes what is computed ({why})"
        else:
            text = f"hidden state: every leaf was equal after the load ({why})"
        return Diagnosis(is_deterministic=True, text=text, blame=blame)

    def _of_the_end(self) -> Diagnosis:
        """Every step was equal and the end was not: does the reference end as it did before?"""
        again = {"repeated_reference": False, "reference_in_another_interpreter": True}
        for name, fresh in again.items():
            if fresh and not self._is_interpreter_another:
                continue
            repeated = self._end_of_reference(name, fresh=fresh)
            if repeated.status is Status.different:
                where = f" that ran in two interpreters: {repeated.detail}. {self._interpreters()}"
                text = f"two references end differently{where if fresh else f': {repeated.detail}'}"
                return Diagnosis(is_deterministic=False, text=text)
            if repeated.status is not Status.equal:
                raise RankFailedError(f"the end of the {name.replace('_', ' ')} cannot be compared: {repeated.detail}")
        self.reference_repeats = True
        if self._ends_right(saves=False) and not self._ends_right(saves=True):
            text = "saving changes the state: every step came out the same, and the end is right if nothing is saved"
            return Diagnosis(is_deterministic=True, text=text, is_of_saving=True)
        return Diagnosis(
            is_deterministic=True,
            text="hidden state: every step came out the same, and yet the state at the end is another one",
        )

    def _end_of_reference(self, name: str, *, fresh: bool) -> Check:
        """Run the reference to its end once more, and compare that with what it was."""
        run = self._beside(name, resume_from=self._material.run.checkpoints if self._is_later else None)
        begins_as = self._material.resumes[0].index if self._is_later else None
        self._run(run, saves_at_end_only=True, begins_as=begins_as, fresh=fresh)
        return self._compared_ends(run)

    def _compared_ends(self, run: Run) -> Check:
        steps, counts = self._material.subject.steps, Ignored(self._material.ignore).counts
        return compare_checkpoints(self._reference.checkpoint(steps), run.checkpoint(steps), step=steps, counts=counts)

    def _ends_right(self, *, saves: bool) -> bool:
        """Whether the run, from the checkpoint of its first resume on and never killed again, ends as it should."""
        checkpoint = next(map(self._checkpoint, self._material.resumes), None)
        if checkpoint is None:
            return False
        run = self._beside("saving_run" if saves else "unsaved_run", resume_from=checkpoint)
        begins_as = self._material.resumes[0].index
        self._run(run, saves_at_end_only=not saves, saves_after_resume=saves, begins_as=begins_as)
        return self._compared_ends(run).status is Status.equal

    def _by_interpreter(self, mismatch: Mismatch) -> Diagnosis:
        """Two references differ, and what they have not in common is the interpreter that they ran in."""
        return Diagnosis(
            is_deterministic=False,
            text=f"two references differ that ran in two interpreters: {mismatch}. {self._interpreters()}",
            first_difference=mismatch.as_difference(),
        )

    def _interpreters(self) -> str:
        seeds = sorted({start.hash_seed or "random" for start in self._material.starts})
        return (
            f"What an interpreter draws when it starts decides (PYTHONHASHSEED was {' and '.join(seeds)}): hash() of a "
            "string, the order of a set, id(). Sort what comes out of a set, use zlib.crc32 for hash(), or set "
            "PYTHONHASHSEED for every start of the job"
        )

    def _not_deterministic(self, mismatch: Mismatch) -> Diagnosis:
        """Two references differ: name the operation, from two more that are watched where they did."""
        window = TraceWindow(first_step=max(1, mismatch.step - 1), last_step=mismatch.step)
        operation = None
        with contextlib.suppress(RankFailedError):
            # That two references differ is known without them.
            traced = [self._reference_again(f"traced_reference_{number}", window) for number in (2, 3)]
            operation = first_operation(traced[0], traced[1], ranks=self._ranks)
        where, first = f"two references differ: {mismatch}", mismatch.as_difference()
        if operation is not None:
            what = operation.text(resumed_at=None)
            where = f"{what} does not repeat from one reference to the next; {where}"
            first = first.with_details(operation=what)
        return Diagnosis(is_deterministic=False, text=where, first_difference=first)


def _is_decided_before(mismatch: Mismatch, operation: Operation) -> bool:
    """Whether what the ledger says is nearer to the cause than the operation."""
    return mismatch.field == "skipped" and not operation.comes_before_backward
