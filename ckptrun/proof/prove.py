"""A proof: a reference, the same run killed and resumed, and everything that must be equal compared.

::

    reference   from the first step to the last; saves nothing but its end
    run         start 0 until the first fault; then again, from its newest checkpoint, until the next one, until the
                end; and once more from its end, unless a checkpoint of a resumed start was resumed from already
    controls    from the checkpoint of the first resume, with one component left out, until that shows
    diagnosis   only when something differs; see ``diagnose``

Every leg is a set of fresh processes. This process starts them, waits, and compares what they leave on disk.
"""

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TypeAlias

from ckptrun.checks.ignored import Ignored
from ckptrun.checks.whole_runs import second_resumes
from ckptrun.config.proof import ProofConfig
from ckptrun.config.run import RunConfig
from ckptrun.console import say_error
from ckptrun.engine.locate import locate
from ckptrun.evidence.run_folder import PROOF_LOCK
from ckptrun.evidence.starts import EventKind, Start, read_failures, read_starts
from ckptrun.evidence.verdict import Status, Verdict, write_verdict
from ckptrun.exit_codes import ExitCode
from ckptrun.fault import FaultRecord, PlannedFault
from ckptrun.launch.silent_end import spoken_or_seen
from ckptrun.proof.failed import judge_failed
from ckptrun.proof.folder import claim_folder
from ckptrun.proof.leg_end import why_incomplete
from ckptrun.proof.leg_progress import leg_progress
from ckptrun.proof.material import Material
from ckptrun.proof.outside_files import OutsideFiles
from ckptrun.proof.own_job import OwnJob
from ckptrun.proof.places import keep_copies
from ckptrun.proof.preflight import reshaped
from ckptrun.proof.private_files import PrivateFiles, check_private
from ckptrun.proof.subject import Run, Subject, TimedOutcome
from ckptrun.proof.view import ProofView
from ckptrun.report.write import reported
from ckptrun.run.leg import Controls, Leg
from ckptrun.run.lock import RunLock
from ckptrun.run.preflight import check_folder, make_folder

__all__ = ["Judge", "prove_subject", "run_proof"]

# Beyond those that faults cause: the first, and two that load what a resumed one has saved.
_MOST_FURTHER_STARTS = 3


class Interrupted(Exception):  # it is no error of anybody
    """Somebody wants this process to end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)


def run_proof(config: RunConfig, *, plan: tuple[PlannedFault, ...], command: Sequence[str]) -> int:
    """Prove ``config``; write ``verdict.json`` and ``report.html``; return the exit code.

    Args:
        config: Checked.
        plan: What fails, as :func:`~ckptrun.proof.preflight.check_proof` has planned it.
        command: The command line, for the record.

    Raises:
        ConfigError: The folder belongs to something else, and nothing has been started; or a leaf to ignore is none of
            the reference.
    """
    # Imported here: it loads torch, which proofs of commands do without.
    from ckptrun.proof.judge import judge

    check_folder(config.run_dir, in_proof=True)
    check_private(config)
    make_folder("run.dir", config)
    with closing(RunLock(config.run_dir, PROOF_LOCK)):
        outside = OutsideFiles(config, known=claim_folder(config.run_dir, config.checkpoint.path, command))
        private = PrivateFiles(config)
        after = reshaped(config) if config.proof.reshapes else config
        subject = OwnJob(config, after, plan=plan, outside=outside, private=private, command=command)
        try:
            private.keep()
            with reported(config.run_dir):
                return prove_subject(subject, config.proof, judge=partial(judge, outside=outside))
        finally:
            private.put_back()


Judge: TypeAlias = Callable[..., Verdict]
"""Makes every check that there is of such a job: ``(material, start_run=, controls=)``, where ``start_run`` starts
another leg, and ``controls`` runs the controls."""


def prove_subject(subject: Subject, options: ProofConfig, *, judge: Judge) -> int:
    """Prove a job whose folder is claimed; write ``verdict.json``; return the exit code."""
    try:
        return _Proof(subject, options, judge=judge).run()
    except (Interrupted, KeyboardInterrupt) as ended:
        by = f" by {ended}" if isinstance(ended, Interrupted) else ""
        say_error(f"ckptrun: the proof was interrupted{by}. Run the same command again to do it anew.")
        return ExitCode.failed


class _Proof:
    """One proof.

    Args:
        subject: What is proved.
        options: What is asked to be checked.
        judge: Comes to the verdict.
    """

    def __init__(self, subject: Subject, options: ProofConfig, *, judge: Judge) -> None:
        self._judge = judge
        self._subject = subject
        self._options = options
        self._plan: tuple[PlannedFault, ...] = ()
        self._run = subject.run("run")
        self._reference = subject.run("reference")
        self._record = FaultRecord(self._run.folder)
        self._view = ProofView(subject)
        self._kept: dict[str, str] = {}
        self._other_mesh: str | None = None
        self._began = time.monotonic()
        self._legs: list[dict[str, object]] = []

    def run(self) -> int:
        """Run all legs, judge, and say what came out."""
        self._view.begin()
        self._subject.prepare()
        ended = self._start(self._reference, saves_at_end_only=True, samples=self._subject.reshapes)
        steps = self._subject.steps
        why = why_incomplete(self._reference, ended, last_step=steps)
        if why is not None:
            what = "the reference, in which nothing was to fail,"
            return self._failed(read_starts(self._reference.folder), ended, what, why=why)
        if self._options.ignore:
            Ignored(self._options.ignore).check_matched(self._subject.leaf_names(self._reference))
        self._plan = self._subject.plan()
        failure = self._run_under_proof()
        if failure is None and self._other_mesh is not None:
            what = "the uninterrupted run on the other mesh, in which nothing was to fail,"
            return self._failed([], None, what, why=self._other_mesh)
        starts = read_starts(self._run.folder)
        if failure is not None and failure.index == 0:
            said = failure.failure
            why = "its ranks ended with exit code 0 before they were done" if said is None else said.text
            return self._failed(starts, None, "the run, before anything was to fail,", why=why)
        material = Material(
            subject=self._subject,
            ignore=self._options.ignore,
            has_controls=self._options.controls != [],
            starts=starts,
            planned=self._plan,
            fired=self._record.fired(),
            failure=failure,
            kept=self._kept,
        )
        verdict = self._judge(material, start_run=self._start, controls=lambda: self._controls(starts))
        return self._finish(verdict, starts)

    def _run_under_proof(self) -> Start | None:
        """Start the run until it is complete and was resumed twice; return a start that failed unplanned."""
        stops = () if self._plan else self._subject.stops
        index = 0
        while True:
            known = {fault.index for fault in self._record.fired()}
            failures = len(read_failures(self._run.folder))
            ended = self._start(
                self._subject.run("run", is_later=index > 0),
                start=index,
                faults=self._plan,
                stop_at=stops[index] if index < len(stops) else None,
                saves_after_resume=index > 0,
                fresh=self._is_first_resume(index),
                samples=self._subject.reshapes,
            )
            starts = read_starts(self._run.folder)
            last = starts[-1] if len(starts) > index else Start(index=index)
            # Ranks that failed before they could say that they were there belong to this start, not to the last one.
            said = read_failures(self._run.folder)[failures:]
            last.failure = spoken_or_seen(said, ended.outcome, run_dir=self._run.folder, start=index)
            struck = [f for f in self._record.fired() if f.index not in known and not f.kind.is_silent]
            self._view.started(last, struck, ended)
            if last.ended == EventKind.end and not self._wants_another(starts, ended):
                return None
            if last.ended is None and not struck:
                return last
            if last.ended != EventKind.end:
                self._before_resume(is_first=index == 0)
            index += 1

    def _is_first_resume(self, index: int) -> bool:
        """Whether a start is the first that has something to go on from."""
        if index == 0 or any(start.fresh for start in read_starts(self._run.folder)):
            return False
        return self._subject.has_checkpoint(self._run)

    def _wants_another(self, starts: Sequence[Start], ended: TimedOutcome) -> bool:
        """Whether the run, which is complete, shall be started once more only to load its end."""
        # A fault that has not struck by the end never does.
        is_missed = bool(self._plan) and not self._record.fired()
        enough = is_missed or second_resumes(starts) or len(starts) > len(self._plan) + _MOST_FURTHER_STARTS
        return ended.outcome.exit_code == ExitCode.done and not enough

    def _before_resume(self, *, is_first: bool) -> None:
        """Keep what the resumed run may remove; on another mesh, let an uninterrupted run show what is right there."""
        root = self._run.checkpoints
        if self._subject.keep_last is not None:
            self._kept.update(keep_copies(root, self._subject.run("kept").folder))
        if is_first and self._subject.reshapes and self._subject.has_checkpoint(self._run):
            again = self._subject.run("resumed_reference", is_later=True, resume_from=root)
            ended = self._start(again, saves_at_end_only=True, samples=True, begins_as=1)
            # The resume may fail of the same: that is what the proof is about, and is told first.
            self._other_mesh = why_incomplete(again, ended, last_step=self._subject.steps)

    def _controls(self, starts: Sequence[Start]) -> Sequence[Start]:
        """Run the controls from the checkpoint of the first resume; return what they say."""
        source = next((s for s in starts if s.resumed_from is not None and s.step < self._subject.steps), None)
        if source is None or source.resumed_from is None:
            return []
        checkpoint = self._kept.get(str(locate(source.resumed_from)), source.resumed_from)
        reshapes, options = self._subject.reshapes, self._options
        controls = Controls(
            components=options.control_names,
            ignore=tuple(options.ignore),
            are_named=isinstance(options.controls, list),
            checkpoint=checkpoint,
            reference=self._subject.run("resumed_reference" if reshapes else "reference").folder,
        )
        run = self._subject.run("controls", is_later=reshapes, saves=False)
        self._start(run, controls=controls, begins_as=source.index)
        return read_starts(run.folder)

    def _start(self, run: Run, **what: object) -> TimedOutcome:
        """Start the ranks of one leg; what they print goes to a file."""
        leg = Leg(name=run.name, in_proof=True, log=run.folder / "logs", **what)  # type: ignore[arg-type]
        with leg_progress(run.name, run.folder, steps=self._subject.steps):
            ended = self._subject.start(run, leg)
        if ended.outcome.interrupted_by is not None:
            raise Interrupted(ended.outcome.interrupted_by)
        self._legs.append({"name": run.name, "start": leg.start, "seconds": round(ended.seconds, 3)})
        if run.name != self._run.name:
            self._view.leg(run.name, ended)
        return ended

    def _failed(
        self,
        starts: Sequence[Start],
        ended: TimedOutcome | None,
        what: str,
        *,
        why: str,
    ) -> int:
        """The job does not run at all: nothing is proved, and the error is its own."""
        verdict = judge_failed(starts, what, why=why)
        # A rank that ends in the middle of its work may say 0.
        code = (ended.outcome.exit_code if ended is not None else 0) or ExitCode.failed
        code = verdict.exit_code if verdict.status is Status.different else code
        self._write(verdict, starts, code)
        say_error(f"ckptrun: {verdict.reason}")
        say_error(f"         what its ranks printed: {self._run.folder}/logs, {self._run.folder}/proof/*/logs")
        return code

    def _finish(self, verdict: Verdict, starts: Sequence[Start]) -> int:
        self._write(verdict, starts, verdict.exit_code)
        self._view.finish(verdict)
        return verdict.exit_code

    def _write(self, verdict: Verdict, starts: Sequence[Start], code: int) -> None:
        more = {
            "exit_code": code,
            "seconds": round(time.monotonic() - self._began, 3),
            "legs": self._legs,
            "faults": [str(fault) for fault in self._plan],
            "fired": [str(fault) for fault in self._record.fired()],
            "starts": [
                {
                    "step": start.step,
                    "resumed_from": start.resumed_from,
                    "ended": start.ended,
                    "ranks": start.world_size,
                    "hash_seed": start.hash_seed,
                }
                for start in starts
            ],
        }
        write_verdict(verdict, self._run.folder, **more)
