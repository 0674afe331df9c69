"""Why a run does not repeat its reference, although its state was equal after the load.

1. The reference is run again, every operation around the first difference written down. If it does not repeat itself,
   nobody can say anything of the resume: the job is not deterministic, and the first operation that differs is named.
2. What differed is run again too, from the same checkpoint, and written down likewise. The first operation that differs
   names the cause as closely as its effect allows: what it is made of is in no state that is saved.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptrun.checkpoint.backend import locate
from ckptrun.checkpoint.commit import is_committed
from ckptrun.launch.leg import TraceWindow
from ckptrun.launch.legs import Legs, TimedOutcome
from ckptrun.launch.preflight import checkpoint_of
from ckptrun.proof import Status
from ckptrun.proof.checkpoints import compare_checkpoints
from ckptrun.proof.judge import compare_ledgers, describe
from ckptrun.proof.ledger import Mismatch
from ckptrun.proof.starts import Start
from ckptrun.proof.trace import Operation, first_operation

if TYPE_CHECKING:
    from ckptrun.launch.evidence import Evidence

__all__ = ["Diagnosis", "Suspect", "diagnose"]

# More steps than these are not watched from the resume on, only the two in which the difference shows.
_WATCHED_STEPS = 8
# What is decided before the operation that shows it.
_DECIDED_FIRST = ("learning_rate", "skipped")


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
    first_difference: Mapping[str, Any] | None = None


def diagnose(suspect: Suspect, evidence: "Evidence", *, run_leg: Callable[..., TimedOutcome]) -> Diagnosis:
    """Find the cause.

    Args:
        suspect: What differed.
        evidence: The legs so far.
        run_leg: Starts another leg: (legs, config, name, ...).
    """
    return _Inquiry(suspect, evidence, run_leg).run()


class _Inquiry:
    def __init__(self, suspect: Suspect, evidence: "Evidence", run_leg: Callable[..., TimedOutcome]) -> None:
        self._suspect = suspect
        self._evidence = evidence
        self._run_leg = run_leg
        # On another mesh a resumed start is held against an uninterrupted one on that mesh.
        self._is_later = evidence.config.proof.reshapes and suspect.start.index > 0
        self._legs: Legs = evidence.later_legs if self._is_later else evidence.legs
        self._ranks = evidence.after.ranks if self._is_later else evidence.config.ranks
        self._reference = evidence.reference_of_later if self._is_later else evidence.legs.folder("reference")

    def run(self) -> Diagnosis:
        mismatch = self._suspect.mismatch
        if mismatch is None:
            return self._of_the_end()
        window = self._window(mismatch.step)
        again = self._reference_again("traced_reference", window)
        repeated = compare_ledgers(self._reference, again, ranks=self._ranks, last_step=mismatch.step)
        if repeated.first is not None:
            return self._not_deterministic(repeated.first)
        traced = self._start_again(window)
        if traced is None:
            return self._unexplained("the checkpoint that it was resumed from is gone (checkpoint.keep_last)")
        operation = first_operation(again, traced, ranks=self._ranks)
        if operation is None:
            return self._unexplained("it did not show again when every operation was watched")
        return self._named(operation, mismatch)

    def _window(self, step: int) -> TraceWindow:
        begin = self._suspect.start.step + 1
        if step - begin >= _WATCHED_STEPS:
            begin = step - 1
        return TraceWindow(first_step=min(begin, step), last_step=step)

    def _reference_again(self, name: str, window: TraceWindow) -> Path:
        """Run the reference once more, as far as the window goes."""
        config = self._legs.beside(name, saves=False)
        if self._is_later:
            config.checkpoint.resume = (
                self._checkpoint(self._evidence.resumes[0]) or self._evidence.config.checkpoint_root
            )
        self._run_leg(self._legs, config, name, stop_at=window.last_step, trace=window)
        return config.run_dir

    def _start_again(self, window: TraceWindow) -> Path | None:
        """Run what differed once more: from the same checkpoint, or from the beginning and saving."""
        start, name = self._suspect.start, "traced_run"
        if start.resumed_from is None:
            config = self._legs.beside(name)
        else:
            checkpoint = self._checkpoint(start)
            if checkpoint is None:
                return None
            config = self._legs.beside(name, saves=False)
            config.checkpoint.resume = checkpoint
        self._run_leg(self._legs, config, name, stop_at=window.last_step, trace=window)
        return config.run_dir

    def _checkpoint(self, start: Start) -> str | None:
        """The checkpoint that ``start`` went on from, or a copy of it."""
        if start.resumed_from is None:
            return None
        kept = self._evidence.kept.get(str(locate(start.resumed_from)), start.resumed_from)
        return kept if is_committed(locate(kept)) else None

    def _named(self, operation: Operation, mismatch: Mismatch) -> Diagnosis:
        start = self._suspect.start
        resumed_at = start.step if start.resumed_from is not None else None
        what = operation.text(resumed_at=resumed_at)
        if mismatch.field in _DECIDED_FIRST:
            blame, shown = mismatch.component, describe(mismatch)
        else:
            blame, shown = operation.component, what
        first = {
            "step": operation.step,
            "rank": operation.rank,
            "component": blame,
            "leaf": f"{operation.name} {operation.what}",
            "index": None,
            "expected": operation.expected,
            "got": operation.got,
            "ulp": None,
            "operation": what,
            "ledger": mismatch.as_difference(),
        }
        if mismatch.field in _DECIDED_FIRST:
            first = {**mismatch.as_difference(), "operation": what}
        if resumed_at is None:
            text = f"saving changes what is computed: {shown} differs from the run that saves nothing"
        else:
            text = f"hidden state: every leaf was equal after the load, and yet {shown} differs"
        return Diagnosis(is_deterministic=True, text=text, blame=blame, first_difference=first)

    def _unexplained(self, why: str) -> Diagnosis:
        mismatch = self._suspect.mismatch
        blame = mismatch.component if mismatch is not None else None
        if self._suspect.start.resumed_from is None:
            text = f"saving changes what is computed ({why})"
        else:
            text = f"hidden state: every leaf was equal after the load ({why})"
        return Diagnosis(is_deterministic=True, text=text, blame=blame)

    def _of_the_end(self) -> Diagnosis:
        """Every step was equal and the end was not: does the reference end as it did before?"""
        config = self._legs.beside("repeated_reference")
        if self._is_later:
            config.checkpoint.resume = self._evidence.config.checkpoint_root
        self._run_leg(self._legs, config, "repeated_reference", saves_at_end_only=True)
        steps = self._evidence.config.train.steps
        repeated = compare_checkpoints(
            checkpoint_of(self._reference, steps), checkpoint_of(config.run_dir, steps), step=steps
        )
        if repeated.status is Status.different:
            return Diagnosis(is_deterministic=False, text=f"two references end differently: {repeated.detail}")
        return Diagnosis(
            is_deterministic=True,
            text="hidden state: every step came out the same, and yet the state at the end is another one",
        )

    def _not_deterministic(self, mismatch: Mismatch) -> Diagnosis:
        """Two references differ: name the operation, from two more that are watched where they did."""
        window = TraceWindow(first_step=max(1, mismatch.step - 1), last_step=mismatch.step)
        traced = [self._reference_again(f"traced_reference_{number}", window) for number in (2, 3)]
        operation = first_operation(traced[0], traced[1], ranks=self._ranks)
        where = f"two references differ: {describe(mismatch)}"
        if operation is not None:
            where = f"{operation.text(resumed_at=None)} does not repeat from one reference to the next; {where}"
        return Diagnosis(is_deterministic=False, text=where)
