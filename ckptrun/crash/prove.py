"""``crash=save``: a run is recorded, and every state that a crash within a save can leave judged and told by cause."""

import shlex
import shutil
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from ckptrun.config.run import RunConfig
from ckptrun.console import has_colour, say, say_error
from ckptrun.crash.judging import Judging, chosen_of
from ckptrun.crash.recording import Recording, Window, choose_window, read_recording
from ckptrun.crash.report import Group, Judged, groups_of, lines_of, write_repro
from ckptrun.crash.resumes import Came, Resumes
from ckptrun.crash.states import How, crash_states
from ckptrun.crash.trace import CHANGES, strace
from ckptrun.crash.warm import read_programs
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.run_folder import PROOF_LOCK
from ckptrun.evidence.verdict import Check, Status, Verdict, verdict_of, write_verdict
from ckptrun.exit_codes import ExitCode
from ckptrun.foreign.alignment import Aligned
from ckptrun.foreign.checkpoints import saved_steps
from ckptrun.foreign.judge import StartFacts, check_observed
from ckptrun.foreign.preflight import check_command_proof
from ckptrun.foreign.reference import check_reference, words_of_end
from ckptrun.foreign.starter import Starter
from ckptrun.foreign.translation import write_ledgers
from ckptrun.proof.folder import claim_folder
from ckptrun.proof.prove import Interrupted
from ckptrun.proof.view import coloured, leg_line, text_of
from ckptrun.report.write import reported
from ckptrun.run.lock import RunLock
from ckptrun.run.preflight import check_folder, make_folder
from ckptrun.text import counted

__all__ = ["prove_crash_states"]

_MOST_REPROS = 20
_OWN = ("output", "probe", "repro", "crash")
_BEGAN = Aligned(step=0, how="beginning")


def prove_crash_states(config: RunConfig, *, command: Sequence[str] = ()) -> int:
    """Judge the crash states of a save of the command; return the exit code.

    Writes ``verdict.json``, ``repro/`` and ``report.html``.

    Args:
        config: Checked.
        command: The command line of ckptrun, for the record.

    Raises:
        ConfigError: The folder belongs to something else, strace is not there, or there is no such save.
    """
    check_command_proof(config)
    strace(Path(), "")
    check_folder(config.run_dir, in_proof=True)
    make_folder("run.dir", config)
    with closing(RunLock(config.run_dir, PROOF_LOCK)):
        claim_folder(config.run_dir, None, command)
        for name in _OWN:
            shutil.rmtree(config.run_dir / name, ignore_errors=True)
        try:
            with reported(config.run_dir):
                return _CrashProof(config).run()
        except (Interrupted, KeyboardInterrupt):
            say_error("ckptrun: the proof was interrupted. Run the same command again to do it anew.")
            return ExitCode.failed


@dataclass(slots=True)
class _Counts:
    """How many there are."""

    found: dict[How, int]
    states: int
    resumed: int = 0
    distinct: int = 0
    left_out: int = 0


class _CrashProof:
    def __init__(self, config: RunConfig) -> None:
        self._config = config
        self._crash = config.crash
        self._folder = config.run_dir
        self._began = time.monotonic()
        self._output = config.run_dir / "output"
        self._reference = config.run_dir / "crash" / "reference"
        self._records = config.run_dir / "probe" / "start_00000"
        self._cwd = Path((config.job.cwd or "").replace("{run}", str(self._output))).absolute()

    def run(self) -> int:
        """Record, build, judge, and say what came out."""
        say(f"Crash states of {shlex.join(self._config.job.command)}:")
        recording = self._record()
        if recording is None:
            return ExitCode.failed
        if recording.unknown:
            return self._finish([_not_recorded(recording)], [], recording)
        window = choose_window(recording, self._crash.step, resume_steps=self._crash.resume_steps)
        began = time.monotonic()
        states = crash_states(
            window.before,
            window.operations,
            block_bytes=self._crash.block_bytes,
            with_power_cuts=self._crash.power_cut,
        )
        counts = _Counts(
            {how: sum(any(e.how is how for e in state.endings) for state in states) for how in How}, len(states)
        )
        self._say_found(window, counts, time.monotonic() - began)
        resumes = Resumes(
            self._config.job,
            recording,
            window,
            folder=self._folder / "crash",
            output=self._output,
            steps=self._crash.resume_steps,
        )
        whole = window.whole[window.step].key
        chosen = chosen_of(states, whole, self._crash.max_states)
        counts.left_out = len(states) - len(chosen)
        judging = Judging(resumes, chosen, whole, programs=read_programs(self._records), folder=self._folder / "crash")
        judged = judging.run()
        counts.resumed, counts.distinct = judging.resumed, judging.distinct
        heard = recording.heard
        facts = [StartFacts(aligned=_BEGAN, newest_before=None, steps=heard.steps, errors=heard.errors), *judging.facts]
        shutil.rmtree(self._output, ignore_errors=True)
        checks = [check_observed(facts), self._check(judged, counts, recording, window)]
        return self._finish(checks, judged, recording, counts=counts, window=window)

    # --- the record ---

    def _record(self) -> Recording | None:
        """Run the job with its system calls written down; None: it does not run at all."""
        config = self._config
        folder = self._folder / "crash"
        trace, records = folder / "calls", self._records
        folder.mkdir(parents=True, exist_ok=True)
        self._output.mkdir(parents=True, exist_ok=True)
        log = self._folder / "logs" / "start_00000.log"
        heard, end = Starter(config.job, self._output, digest_every_steps=1).start(
            records, log=log, newest=None, plan={"tells_places": True}, before=strace(trace, CHANGES)
        )
        if end.interrupted_by is not None:
            raise Interrupted(end.interrupted_by)
        text = f"{heard.steps} steps that nothing happens to, recorded"
        say(leg_line("reference", text + (" (failed)" if end.exit_code else ""), end.seconds))
        if end.exit_code:
            words = words_of_end(heard, end, log, config.job)
            check = Check(name="reference", status=Status.not_verified, detail=f"the job itself failed: {words}")
            more = {"exit_code": ExitCode.failed, "seconds": self._seconds}
            write_verdict(verdict_of([check]), self._folder, **more)
            say_error(f"ckptrun: the reference, in which nothing was to fail, failed: {words}")
            return None
        saved = saved_steps(heard, first_step=0, output=self._output, pattern=config.job.checkpoints)
        check_reference(heard, saved, self._output)
        write_ledgers(self._reference, heard, start=0, first_step=0, reference=None)
        recording = read_recording(trace, heard=heard, saved=saved, output=self._output, records=records, cwd=self._cwd)
        trace.unlink()
        recording.seconds = end.seconds
        return recording

    def _say_found(self, window: Window, counts: _Counts, seconds: float) -> None:
        kinds = ", ".join(f"{number} {how}" for how, number in counts.found.items() if number)
        ranks = len({operation.rank for operation in window.operations})
        text = (
            f"step {window.step}: {counted(len(window.operations), 'call')} of {counted(ranks, 'rank')}; "
            f"{counts.states} different states ({kinds})"
        )
        say(leg_line("save", text, seconds))

    # --- the states ---

    def _check(self, judged: Sequence[Judged], counts: _Counts, recording: Recording, window: Window) -> Check:
        covered = {"states": len(judged), "resumes": counts.resumed}
        first = judged[0]
        if len(judged) == 1 and counts.states > 1 and first.outcome.came is not Came.equal:
            detail = (
                f"a resume from the whole checkpoint of step {window.step} is not equal already, without any crash: "
                f"{first.outcome.text}. Prove that first, with fault=sigkill"
            )
            return Check(
                name="resume", status=Status.different, detail=detail, covered=covered, blame=first.outcome.component
            )
        numbers = {came: sum(one.outcome.came is came for one in judged) for came in Came}
        same = len(judged) - counts.distinct
        how = f"{counted(counts.resumed, 'resume')}; {same} look to the job like another one"
        worst = next((g for g in groups_of(judged) if g.outcome.came is not Came.equal), None)
        if worst is None and not recording.steps_after(window.step):
            detail = (
                f"no state of the save of step {window.step} fails, but the job takes no step after it: what a resume "
                "would compute is not seen. Let the job go on for longer, or choose an earlier save with crash.step"
            )
            return Check(name="crash_states", status=Status.not_verified, detail=detail, covered=covered)
        if worst is None:
            detail = f"all {counted(len(judged), 'state')} are resumed exactly, without lost work ({how})"
            return Check(name="crash_states", status=Status.equal, detail=detail, covered=covered)
        said = ", ".join(f"{number} {came.value}" for came, number in numbers.items() if number)
        detail = f"of {counted(len(judged), 'state')} {said} ({how}); e.g. {worst.judged[0].outcome.text}"
        return Check(
            name="crash_states",
            status=Status.different,
            detail=detail,
            covered=covered | {came.value: number for came, number in numbers.items()},
            first_difference=Difference(
                step=window.step, expected="a resume that goes on exactly", got=worst.outcome.text.splitlines()[0]
            ),
            blame=worst.outcome.component,
        )

    # --- the end ---

    @property
    def _seconds(self) -> float:
        return round(time.monotonic() - self._began, 3)

    def _finish(
        self,
        checks: Sequence[Check],
        judged: Sequence[Judged],
        recording: Recording,
        *,
        counts: _Counts | None = None,
        window: Window | None = None,
    ) -> int:
        groups = [group for group in groups_of(judged) if group.outcome.came is not Came.equal]
        verdict = verdict_of(checks)
        left_out = counts.left_out if counts is not None else 0
        uncovered = [*recording.notes]
        if left_out:
            uncovered.append(f"{left_out} states: crash.max_states={self._crash.max_states} chose others")
        left = 0 if window is None else min(recording.steps_after(window.step), self._crash.resume_steps)
        if window is not None and left < self._crash.resume_steps:
            uncovered.append(f"what a resume computes: the job takes {counted(left, 'step')} after the save")
        if not self._crash.power_cut:
            uncovered.append("power cuts: crash.power_cut=false")
        verdict = replace(verdict, path=str(self._folder), not_covered=uncovered, advice=_advice(groups))
        more = {
            "exit_code": verdict.exit_code,
            "seconds": self._seconds,
            "save": None if window is None else window.step,
            "states": None if counts is None else {str(how): number for how, number in counts.found.items()},
            "crash_states": [group.as_json() for group in groups_of(judged)],
        }
        write_verdict(verdict, self._folder, **more)
        for number, group in enumerate(groups[:_MOST_REPROS]):
            write_repro(
                self._folder / "repro" / f"{number + 1:02d}", group, output=self._output, cwd=self._cwd,
                environment={n: str(v).replace("{run}", str(self._output)) for n, v in self._config.job.env.items()},
                job=shlex.join(self._config.job.command),
            )  # fmt: skip
        self._say(verdict, groups)
        return verdict.exit_code

    def _say(self, verdict: Verdict, groups: Sequence[Group]) -> None:
        say("")
        for number, group in enumerate(groups):
            say("\n".join(lines_of(group)))
            if number < _MOST_REPROS:
                say(f"  again: {self._folder}/repro/{number + 1:02d}/reproduce.sh; for its tracker: report.md there")
        say(coloured(text_of(verdict), verdict.status) if has_colour() else text_of(verdict))


def _not_recorded(recording: Recording) -> Check:
    detail = f"the record of the job's system calls does not tell all that it did to files: {recording.unknown[0]}"
    return Check(name="record", status=Status.not_verified, detail=detail)


def _advice(groups: Sequence[Group]) -> str:
    came = {group.outcome.came for group in groups}
    if Came.failed in came or Came.different in came:
        return (
            "Write a checkpoint under another name, sync its files, rename it, sync the folder, and only then remove "
            "older ones; a resume takes the newest that is whole, and skips what is not."
        )
    if Came.lost_work in came:
        return "A complete checkpoint is passed over: look at how the resume chooses, and at when its mark is written."
    return ""
