"""Whether a leg came to its end: one that did not is evidence of nothing, neither of a difference nor of its absence.

What is missing compares as equal, step by step: so an exit code of 0 is not enough, the ledgers must be there too.
Torch-free.
"""

from pathlib import Path

from ckptrun.errors import RankFailedError
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.evidence.starts import read_failures
from ckptrun.exit_codes import ExitCode
from ckptrun.files import read_lines
from ckptrun.launch.silent_end import spoken_or_seen
from ckptrun.proof.subject import Run, TimedOutcome

__all__ = ["check_leg", "why_incomplete"]


def check_leg(name: str, run: Run, ended: TimedOutcome, *, last_step: int) -> None:
    """See that a leg which nothing was to happen to has taken its steps.

    Args:
        name: Of the leg, for people.
        run: Which it was.
        ended: How its ranks ended.
        last_step: The step that it was to end after.

    Raises:
        RankFailedError: It has not; the message has the words of a rank that failed.
    """
    why = why_incomplete(run, ended, last_step=last_step)
    if why is not None:
        raise RankFailedError(f"{name} failed: {why}")


def why_incomplete(run: Run, ended: TimedOutcome, *, last_step: int) -> str | None:
    """Say why a leg has not taken its steps up to ``last_step``; None: it has."""
    if ended.outcome.exit_code != ExitCode.done:
        return _words(run.folder, ended)
    for rank in range(run.ranks):
        last = max((line["step"] for line in read_lines(ledger_file(run.folder, rank))), default=0)
        if last < last_step:
            return f"rank {rank} ended with exit code 0 after step {last} of {last_step}"
    return None


def _words(run_dir: Path, ended: TimedOutcome) -> str:
    failure = spoken_or_seen(read_failures(run_dir)[::-1], ended.outcome, run_dir=run_dir)
    return "interrupted" if failure is None else f"rank {failure.rank}: {failure.text}"
