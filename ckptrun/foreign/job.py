"""A command as the subject of a proof: started in a folder, listened to, and told of as a run of ours. Torch-free."""

import shlex
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptrun.config.fault import FaultConfig
from ckptrun.config.job import JobConfig
from ckptrun.evidence.ledger_comparison import compare_ledgers
from ckptrun.evidence.mismatch import Mismatch
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.evidence.starts import Start
from ckptrun.evidence.verdict import Status, Verdict
from ckptrun.exit_codes import ExitCode
from ckptrun.fault import FaultRecord, PlannedFault
from ckptrun.files import read_lines
from ckptrun.foreign.alignment import Aligned, Source, align
from ckptrun.foreign.checkpoints import SavedStep, newest_of, saved_steps, sizes_in_order
from ckptrun.foreign.judge import StartFacts, ends_elsewhere, is_unexplained, judge_command
from ckptrun.foreign.operations import first_operation
from ckptrun.foreign.plan import JobFacts, armed_in_start, plan_job_faults
from ckptrun.foreign.process import CommandEnd
from ckptrun.foreign.records import Heard
from ckptrun.foreign.reference import check_reference, words_of_end
from ckptrun.foreign.starter import Starter
from ckptrun.foreign.translation import ToldStart, check_loaded, write_events, write_ledgers
from ckptrun.launch.local import Outcome
from ckptrun.proof.material import Material
from ckptrun.proof.subject import Run, StartRun, TimedOutcome
from ckptrun.run.leg import Leg

__all__ = ["CommandJob", "Observed"]

_UNDER_PROOF = "run"
_OUTPUT = "output"


@dataclass(slots=True, kw_only=True)
class Observed:
    """What one start of the command was seen to do."""

    heard: Heard
    aligned: Aligned
    saved: Sequence[SavedStep]
    end: CommandEnd
    newest_before: SavedStep | None
    """The newest complete checkpoint that there was when it began, of the form of what it has read."""
    newest_of_all: SavedStep | None
    """Of whichever form."""

    @property
    def has_failed(self) -> bool:
        """Whether the command ended in an error, or a process that trains did: pipes and scripts may end well yet."""
        heard = self.heard
        has_raised = any(rank.exception for rank in heard.ranks) or bool(not heard.ranks and heard.exceptions)
        return self.end.exit_code != 0 or has_raised


class CommandJob:
    """See :class:`~ckptrun.proof.subject.Subject`.

    Args:
        job: What is started.
        fault: What is to fail.
        run_dir: The folder of the proof.
        digest_every_steps: Digests are taken at every so many steps.
    """

    reshapes = False
    keep_last = None
    precision = None
    stops: Sequence[int] = ()

    def __init__(self, job: JobConfig, fault: FaultConfig, run_dir: Path, *, digest_every_steps: int = 1) -> None:
        self._job = job
        self._fault_config = fault
        self._run_dir = run_dir.resolve()
        self._every = digest_every_steps
        self._by_update = False
        """Whether the reference has shown that every update must be a step, and is taken once more."""
        self.steps = 0
        self.ranks = 1
        self.reference: Observed | None = None
        self._starts: dict[str, list[Observed]] = {}
        self._watched: dict[tuple[str, int], int] = {}
        """Run and start -> the step of the job whose operations are told one by one."""

    def run(self, name: str, *, is_later: bool = False, saves: bool = True, resume_from: str | None = None) -> Run:
        """See ``Subject``."""
        folder = self._run_dir if name == _UNDER_PROOF else self._run_dir / "proof" / name
        return Run(
            name=name,
            folder=folder,
            checkpoints=str(folder / _OUTPUT),
            ranks=self.ranks,
            is_later=is_later,
            saves=saves,
            resume_from=resume_from,
        )

    @property
    def starts(self) -> Sequence[Observed]:
        """Of the run under proof, in order."""
        return self._starts.get(_UNDER_PROOF, [])

    def prepare(self) -> None:
        """See ``Subject``."""

    @property
    def title(self) -> str:
        """See ``Subject``."""
        command = shlex.join(self._job.command)
        return f"Proof of {command}: {self._fault_config.kind}"

    def plan(self) -> tuple[PlannedFault, ...]:
        """See ``Subject``. The reference has shown when the job saves."""
        facts = self.facts
        if self.reference is not None:
            check_reference(self.reference.heard, self.reference.saved, Path(self.run("reference").checkpoints))
        return plan_job_faults(self._fault_config, facts)

    def has_checkpoint(self, run: Run) -> bool:
        """See ``Subject``."""
        return False

    def leaf_names(self, run: Run) -> Sequence[str]:
        """See ``Subject``."""
        lines = read_lines(ledger_file(run.folder, 0))
        return sorted(lines[-1]["leaves"]) if lines else []

    def judge(self, material: Material, *, start_run: StartRun, controls: Callable[[], Sequence[Start]]) -> Verdict:
        """Come to the verdict; see ``ckptrun.proof.prove.Judge``."""
        found = compare_ledgers(material.reference.folder, material.run.folder, ranks=self.ranks).first
        again = None
        if found is not None and found.start > 0 and not self._is_repeated(found, material):
            run = self.run("reference_again")
            self._watched[run.name, 0] = found.step
            start_run(run)
            again = run.folder
        facts, notes = self._facts_of_starts(), self._notes()
        verdict = judge_command(material, facts, again=again, notes=notes)
        if found is None and ends_elsewhere(verdict):
            start_run(self.run("reference_again"))
            steps = self._starts["reference_again"][-1].heard.steps
            return judge_command(material, facts, again=None, notes=notes, steps_again=steps)
        if found is None or not is_unexplained(verdict):
            return verdict
        operation = self._first_operation(verdict, found, material, start_run)
        return judge_command(material, facts, again=again, notes=notes, operation=operation)

    def _first_operation(self, verdict: Verdict, found: Mismatch, material: Material, start_run: StartRun) -> str:
        """Do the step that came out otherwise once more, in two runs, and tell the first operation that differs."""
        reference, other = self.run("reference_again"), self.run("run_again")
        if verdict.status is Status.not_verified:
            # Nothing has happened to either of the two.
            other = self.run("reference_once_more")
            step = None if verdict.first_difference is None else verdict.first_difference.step
            for run in (reference, other):
                self._watched[run.name, 0] = step or found.step
                start_run(run)
        else:
            if reference.name not in self._starts:
                self._watched[reference.name, 0] = found.step
                start_run(reference)
            self._watched[other.name, found.start] = found.step
            for start in range(found.start + 1):
                start_run(other, start=start, faults=material.planned)
        heard = [self._starts[run.name][-1].heard for run in (reference, other)]
        first = first_operation(*heard)
        return "" if first is None else str(first)

    def _is_repeated(self, found: Mismatch, material: Material) -> bool:
        """Whether the first start, which had loaded nothing, took the step that came out otherwise, and equally."""
        first = compare_ledgers(material.reference.folder, material.run.folder, ranks=self.ranks, starts=range(1))
        return first.first is None and first.steps >= found.step

    def _facts_of_starts(self) -> list[StartFacts]:
        return [
            StartFacts(
                aligned=one.aligned,
                newest_before=one.newest_before,
                newest_of_all=one.newest_of_all,
                steps=one.heard.steps,
                errors=one.heard.errors,
            )
            for one in self.starts
        ]

    def _notes(self) -> list[str]:
        """What contradicts itself, and decides nothing."""
        return [one.aligned.contradiction for one in self.starts if one.aligned.contradiction][:1]

    @property
    def facts(self) -> JobFacts:
        """What the reference has shown."""
        if self.reference is None:
            return JobFacts(steps=self.steps, ranks=self.ranks, saves=())
        ranks = self.reference.heard.ranks
        return JobFacts(
            steps=self.steps,
            ranks=self.ranks,
            saves=[one.step for one in self.reference.saved if one.is_complete],
            renames=sorted({step for rank in ranks for step in rank.renamed_at if step}),
            removals=sorted({step for rank in ranks for step in rank.removed_at if step}),
            accumulates=any(len(step.losses) > 1 for rank in ranks for step in rank.steps),
        )

    def start(self, run: Run, leg: Leg) -> TimedOutcome:
        """See ``Subject``."""
        output = Path(run.checkpoints)
        if leg.start == 0 and run.name != _UNDER_PROOF:
            shutil.rmtree(run.folder, ignore_errors=True)
            self._starts[run.name] = []
        output.mkdir(parents=True, exist_ok=True)
        there = self._complete(run)
        newest = max(there, key=lambda one: one.step, default=None)
        fired = FaultRecord(run.folder)
        known = {fault.index for fault in fired.fired()}
        resumed = newest.step if newest is not None else 0
        may_move = not self._fault_config.more
        armed = armed_in_start(leg.faults, known, resumed=resumed, facts=self.facts, may_move=may_move)
        faults = [self._fault(fault, run) for fault in armed]
        counting = {"by_update": self._by_update} if self.reference is None else self.reference.heard.counting
        heard, end = Starter(self._job, output, digest_every_steps=self._every).start(
            run.folder / "probe" / f"start_{leg.start:05d}",
            log=_log(run, leg),
            newest=newest,
            plan={
                "faults": faults,
                "first_step": resumed,
                "watched_step": self._watched_step(run, leg),
                **counting,
            },
            struck=lambda: next((str(f.kind) for f in fired.fired() if f.index not in known), None),
        )
        is_struck = any(fault.index not in known for fault in fired.fired())
        if run.name == "reference" and heard.takes_turns and not heard.by_update:
            # Digests are due by that count.
            self._by_update = True
            return self.start(run, leg)
        loads = [load.path for rank in heard.ranks for load in rank.loads]
        observed = self._observed(heard, run, leg, end, before=(newest_of(there, loads, output), newest))
        self._tell(observed, run, leg, is_struck=is_struck)
        if run.name == "reference":
            self.reference, self.steps = observed, observed.heard.steps
            self.ranks = max(1, len(observed.heard.ranks))
        self._starts.setdefault(run.name, []).append(observed)
        code = ExitCode.failed if observed.has_failed else ExitCode.done
        return TimedOutcome(outcome=Outcome(exit_code=code, interrupted_by=end.interrupted_by), seconds=end.seconds)

    def code_of(self, component: str | None) -> str:
        """See ``Subject``."""
        return ""

    # --- the command ---

    def _fault(self, fault: PlannedFault, run: Run) -> dict[str, Any]:
        saved = [] if self.reference is None else self.reference.saved
        place = Path(self.run("reference").checkpoints)
        sizes = {
            str(path.relative_to(place)): size
            for one in saved
            if one.step == fault.step
            for path, size in one.sizes.items()
            if place in path.parents
        }
        in_order = {} if self.reference is None else sizes_in_order(self.reference.heard, fault.step or 0)
        return {
            "index": fault.index,
            "kind": str(fault.kind),
            "point": str(fault.point),
            "step": fault.step,
            "ranks": list(fault.ranks),
            "files": {str(rank): str(FaultRecord(run.folder).file(fault, rank)) for rank in fault.ranks},
            "share": fault.share,
            "sizes": sizes,
            "sizes_in_order": in_order,
        }

    # --- what it did ---

    def _watched_step(self, run: Run, leg: Leg) -> int | None:
        """Which step of a start is watched, counted from 1: it begins where that of the run under proof began."""
        step = self._watched.get((run.name, leg.start))
        if step is None or not leg.start:
            return step
        return step - self.starts[leg.start].aligned.step

    def _complete(self, run: Run) -> list[SavedStep]:
        """Complete checkpoints of earlier starts of a run that are there."""
        earlier = self._starts.get(run.name, [])
        return [one for start in earlier for one in start.saved if one.is_complete and one.place.exists()]

    def _observed(
        self, heard: Heard, run: Run, leg: Leg, end: CommandEnd, *, before: tuple[SavedStep | None, SavedStep | None]
    ) -> Observed:
        """Find where a start stands among the steps of the job, and what it has saved."""
        newest, newest_of_all = before
        aligned = Aligned(step=0, how="beginning")
        if leg.start:
            has_loaded = any(rank.loads for rank in heard.ranks)
            aligned = align(heard, self._sources(run), newest=newest.step if newest is not None and has_loaded else 0)
        saved = saved_steps(heard, first_step=aligned.step, output=Path(run.checkpoints), pattern=self._job.checkpoints)
        return Observed(
            heard=heard,
            aligned=aligned,
            saved=saved,
            end=end,
            newest_before=newest,
            newest_of_all=newest_of_all,
        )

    def _sources(self, run: Run) -> list[Source]:
        """Who may have saved what the next start loads: earlier starts, the last one first, and the reference."""
        known = [*reversed(self._starts.get(run.name, [])), *([self.reference] if self.reference is not None else [])]
        return [Source(heard=one.heard, first_step=one.aligned.step) for one in known]

    def _tell(self, observed: Observed, run: Run, leg: Leg, *, is_struck: bool) -> None:
        """Write down what a start did as a run of ours would have."""
        heard, aligned, end = observed.heard, observed.aligned, observed.end
        loaded = check_loaded(heard, self._sources(run), aligned) if aligned.step else None
        reference = None if self.reference is None else self.reference.heard
        first = self.starts[0].heard if self.starts and run.name == _UNDER_PROOF else None
        write_ledgers(run.folder, heard, start=leg.start, first_step=aligned.step, reference=reference, first=first)
        told = ToldStart(
            start=leg.start,
            ranks=len(heard.ranks),
            aligned=aligned,
            resumed_from=self._place_of(run, aligned.step) if aligned.step else None,
            saved=observed.saved,
            checks=[] if loaded is None else [loaded],
            ended=self._ended(observed, run, is_struck=is_struck),
            failure=_failure(heard, end, _log(run, leg), self._job) if observed.has_failed and not is_struck else None,
        )
        write_events(run.folder, told)

    def _place_of(self, run: Run, step: int) -> str:
        """What the checkpoint of ``step`` is called in the events."""
        saved = [one for start in self._starts.get(run.name, []) for one in start.saved if one.step == step]
        return saved[-1].name if saved else f"step {step}"

    def _ended(self, observed: Observed, run: Run, *, is_struck: bool) -> str | None:
        """How a start came to its end; None: not by itself."""
        if observed.end.exit_code != 0 or (observed.has_failed and not is_struck):
            return None
        if run.name == "reference":
            return "end"
        taken = observed.aligned.step + observed.heard.steps
        if taken >= self.steps:
            return "end"
        # A pipe or a shell script ends well whatever became of the job in it.
        has_saved = any(one.is_complete and one.step == taken for one in observed.saved)
        return "preempted" if is_struck and has_saved else None


def _log(run: Run, leg: Leg) -> Path:
    """Where a start prints to."""
    return (leg.log or run.folder / "logs") / f"start_{leg.start:05d}.log"


def _failure(heard: Heard, end: CommandEnd, log: Path, job: JobConfig) -> Mapping[str, Any]:
    """Why a start came to nothing."""
    return {"rank": 0, "text": words_of_end(heard, end, log, job), "leaves": [], "component": None}
