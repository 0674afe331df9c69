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
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

from ckptrun.checks.ignored import Ignored
from ckptrun.checks.judge import second_resumes
from ckptrun.config.run import RunConfig
from ckptrun.console import say_error
from ckptrun.engine.backends.locate import locate
from ckptrun.engine.commit import list_committed
from ckptrun.evidence.starts import Start, read_failures, read_starts
from ckptrun.evidence.verdict import Status, Verdict
from ckptrun.exit_codes import ExitCode
from ckptrun.fault import FaultRecord, PlannedFault, stop_steps
from ckptrun.files import write_json
from ckptrun.launch.local import start_fork_server
from ckptrun.launch.own_ranks import environment_of
from ckptrun.launch.silent_end import spoken_or_seen
from ckptrun.proof.evidence import Evidence
from ckptrun.proof.judge import judge, judge_failed
from ckptrun.proof.leg_end import why_incomplete
from ckptrun.proof.leg_progress import leg_progress
from ckptrun.proof.legs import Legs, TimedOutcome, check_folder, claim_folder
from ckptrun.proof.outside_files import OutsideFiles
from ckptrun.proof.places import keep_copies
from ckptrun.proof.preflight import check_proof, reshaped
from ckptrun.proof.private_files import PrivateFiles, check_private
from ckptrun.proof.view import ProofView
from ckptrun.run.leg import Controls, Leg
from ckptrun.run.lock import RunLock
from ckptrun.run.preflight import leaf_names, make_folder

__all__ = ["run_proof"]

# Beyond those that faults cause: the first, and two that load what a resumed one has saved.
_MOST_FURTHER_STARTS = 3


class Interrupted(Exception):  # it is no error of anybody
    """Somebody wants this process to end."""

    def __init__(self, number: signal.Signals) -> None:
        super().__init__(number.name)


def run_proof(config: RunConfig, *, command: Sequence[str]) -> int:
    """Prove ``config``; write ``verdict.json``; return the exit code.

    Raises:
        ConfigError: A fault can never fire, or the folder belongs to something else, and nothing has been started; or a
            leaf to ignore is none of the reference.
    """
    plan = check_proof(config)
    after = reshaped(config) if config.proof.reshapes else config
    check_folder(config)
    check_private(config)
    make_folder("run.dir", config)
    with closing(RunLock(config.run_dir, "proof.lock")):
        outside = OutsideFiles(config, known=claim_folder(config))
        private = PrivateFiles(config)
        try:
            private.keep()
            return _Proof(config, after, plan=plan, command=command, outside=outside, private=private).run()
        except (Interrupted, KeyboardInterrupt) as ended:
            by = f" by {ended}" if isinstance(ended, Interrupted) else ""
            say_error(f"ckptrun: the proof was interrupted{by}. Run the same command again to do it anew.")
            return ExitCode.failed
        finally:
            private.put_back()


class _Proof:
    """One proof.

    Args:
        config: Checked.
        after: The config of the run once it was resumed: the same, or on another mesh.
        plan: What fails; empty with ``proof=full``, where starts end by themselves.
        command: The command line, for the record.
        outside: Knows which files legs have in common.
        private: Puts each leg's own copies in place.
    """

    def __init__(
        self,
        config: RunConfig,
        after: RunConfig,
        *,
        plan: tuple[PlannedFault, ...],
        command: Sequence[str],
        outside: OutsideFiles,
        private: PrivateFiles,
    ) -> None:
        self._config = config
        self._private = private
        self._outside = outside
        self._after = after
        self._plan = plan
        self._legs = Legs(config, command=command)
        self._later_legs = Legs(after, command=command)
        self._record = FaultRecord(config.run_dir)
        self._view = ProofView(config, plan=plan)
        self._kept: dict[str, str] = {}
        self._other_mesh: str | None = None

    def run(self) -> int:
        """Run all legs, judge, and say what came out."""
        self._view.begin()
        # It loads torch while the reference runs.
        start_fork_server(environment_of(self._config), in_proof=True, fresh=True)
        samples = self._config.proof.reshapes
        reference = self._legs.beside("reference")
        ended = self._start(self._legs, reference, "reference", saves_at_end_only=True, samples=samples)
        why = why_incomplete(reference, ended, last_step=self._config.train.steps)
        if why is not None:
            what = "the reference, in which nothing was to fail,"
            return self._failed(read_starts(reference.run_dir), ended, what, why=why)
        if self._config.proof.ignore:
            Ignored(self._config.proof.ignore).check_matched(leaf_names(reference.run_dir, self._config.train.steps))
        failure = self._run_under_proof()
        if failure is None and self._other_mesh is not None:
            what = "the uninterrupted run on the other mesh, in which nothing was to fail,"
            return self._failed([], None, what, why=self._other_mesh)
        starts = read_starts(self._config.run_dir)
        if failure is not None and failure.index == 0:
            said = failure.failure
            why = "its ranks ended with exit code 0 before they were done" if said is None else said.text
            return self._failed(starts, None, "the run, before anything was to fail,", why=why)
        evidence = Evidence(
            config=self._config,
            after=self._after,
            legs=self._legs,
            later_legs=self._later_legs,
            starts=starts,
            planned=self._plan,
            fired=self._record.fired(),
            failure=failure,
            kept=self._kept,
            outside=self._outside,
        )
        verdict = judge(evidence, run_leg=self._start, controls=lambda: self._controls(starts))
        return self._finish(verdict, starts)

    def _run_under_proof(self) -> Start | None:
        """Start the run until it is complete and was resumed twice; return a start that failed unplanned."""
        stops: list[int | None] = [] if self._plan else [*stop_steps(self._config)]
        index = 0
        while True:
            known = {fault.index for fault in self._record.fired()}
            failures = len(read_failures(self._config.run_dir))
            legs = self._legs if index == 0 else self._later_legs
            ended = self._start(
                legs,
                legs.under_proof(),
                "run",
                start=index,
                faults=self._plan,
                stop_at=stops[index] if index < len(stops) else None,
                saves_after_resume=index > 0,
                fresh=self._is_first_resume(index),
                samples=self._config.proof.reshapes,
            )
            starts = read_starts(self._config.run_dir)
            last = starts[-1] if len(starts) > index else Start(index=index)
            # Ranks that failed before they could say that they were there belong to this start, not to the last one.
            said = read_failures(self._config.run_dir)[failures:]
            last.failure = spoken_or_seen(said, ended.outcome, run_dir=self._config.run_dir, start=index)
            struck = [f for f in self._record.fired() if f.index not in known and not f.kind.is_silent]
            self._view.started(last, struck, ended)
            if last.ended == "end" and not self._wants_another(starts, ended):
                return None
            if last.ended is None and not struck:
                return last
            if last.ended != "end":
                self._before_resume(is_first=index == 0)
            index += 1

    def _is_first_resume(self, index: int) -> bool:
        """Whether a start is the first that has something to go on from."""
        if index == 0 or any(start.fresh for start in read_starts(self._config.run_dir)):
            return False
        return bool(list_committed(self._config.checkpoint_root))

    def _wants_another(self, starts: Sequence[Start], ended: TimedOutcome) -> bool:
        """Whether the run, which is complete, shall be started once more only to load its end."""
        enough = second_resumes(starts) or len(starts) > len(self._plan) + _MOST_FURTHER_STARTS
        return ended.outcome.exit_code == ExitCode.done and not enough

    def _before_resume(self, *, is_first: bool) -> None:
        """Keep what the resumed run may remove; on another mesh, let an uninterrupted run show what is right there."""
        root = self._config.checkpoint_root
        if self._config.checkpoint.keep_last is not None:
            self._kept.update(keep_copies(root, self._legs.folder("kept")))
        if is_first and self._config.proof.reshapes and list_committed(root):
            again = self._later_legs.beside("resumed_reference")
            again.checkpoint.resume = root
            what = {"saves_at_end_only": True, "samples": True, "begins_as": 1}
            ended = self._start(self._later_legs, again, "resumed_reference", **what)
            # The resume may fail of the same: that is what the proof is about, and is told first.
            self._other_mesh = why_incomplete(again, ended, last_step=self._config.train.steps)

    def _controls(self, starts: Sequence[Start]) -> Sequence[Start]:
        """Run the controls from the checkpoint of the first resume; return what they say."""
        proof = self._config.proof
        source = next((s for s in starts if s.resumed_from is not None and s.step < self._config.train.steps), None)
        if source is None or source.resumed_from is None:
            return []
        checkpoint = self._kept.get(str(locate(source.resumed_from)), source.resumed_from)
        reshapes = self._config.proof.reshapes
        controls = Controls(
            components=proof.control_names,
            ignore=tuple(proof.ignore),
            are_named=isinstance(proof.controls, list),
            checkpoint=checkpoint,
            reference=self._legs.folder("resumed_reference" if reshapes else "reference"),
        )
        legs = self._later_legs if reshapes else self._legs
        config = legs.beside("controls", saves=False)
        self._start(legs, config, "controls", controls=controls, begins_as=source.index)
        return read_starts(config.run_dir)

    def _start(self, legs: Legs, config: RunConfig, name: str, **what: object) -> TimedOutcome:
        """Start the ranks of one leg; what they print goes to a file."""
        leg = Leg(name=name, in_proof=True, log=config.run_dir / "logs", **what)  # type: ignore[arg-type]
        self._private.begin(name, leg.start, begins_as=leg.begins_as)
        leg = replace(leg, files=self._outside.begin(name, leg.start, config.run_dir))
        with leg_progress(name, config.run_dir, steps=config.train.steps):
            ended = legs.start(config, leg)
        if ended.outcome.interrupted_by is not None:
            raise Interrupted(ended.outcome.interrupted_by)
        if name != "run":
            self._view.leg(name, ended)
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
        self._write(verdict, starts)
        say_error(f"ckptrun: {verdict.reason}")
        say_error(f"         what its ranks printed: {self._config.run_dir}/logs, {self._config.run_dir}/proof/*/logs")
        if verdict.status is Status.different:
            return verdict.exit_code
        # A rank that ends in the middle of its work may say 0.
        return (ended.outcome.exit_code if ended is not None else 0) or ExitCode.failed

    def _finish(self, verdict: Verdict, starts: Sequence[Start]) -> int:
        self._write(verdict, starts)
        self._view.finish(verdict)
        return verdict.exit_code

    def _write(self, verdict: Verdict, starts: Sequence[Start]) -> None:
        content = verdict.as_json() | {
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
        write_json(self._config.run_dir / "verdict.json", content)
