"""What is known of ranks that ended without a word: the signal, the exit code, the last line of the log. Torch-free."""

import signal
from collections.abc import Sequence
from pathlib import Path

from ckptrun.evidence.run_folder import LOGS
from ckptrun.evidence.starts import Failure
from ckptrun.launch.local import Outcome
from ckptrun.run.leg import Leg

__all__ = ["last_line", "spoken_or_seen"]

_LONGEST = 200
_SHOWN_RANKS = 2
_WHY = {
    signal.SIGKILL: "the kernel sends it when memory is short, a scheduler when time is over",
    signal.SIGSEGV: "native code has touched memory that is not its own",
    signal.SIGABRT: "native code has given up",
    signal.SIGBUS: "memory or a mapped file is gone; /dev/shm may be full",
    signal.SIGILL: "a library was built for another processor",
    signal.SIGFPE: "native code has divided by zero",
}


def spoken_or_seen(said: Sequence[Failure], outcome: Outcome, *, run_dir: Path, start: int = 0) -> Failure | None:
    """Return what brought ranks down: the first word of a rank, or what can be seen from outside.

    A rank that lost contact with another one knows less than the signal that ended the other.

    Args:
        said: What ranks of this start have said.
        outcome: How they ended.
        run_dir: Where their logs lie.
        start: How often the run had been started before.

    Returns:
        None, when no rank ended before its time.
    """
    first = next((failure for failure in said if not failure.is_secondary), None)
    return first or _seen(outcome, run_dir, start) or next(iter(said), None)


def _seen(outcome: Outcome, run_dir: Path, start: int) -> Failure | None:
    leg = Leg(start=start, log=run_dir / LOGS)
    for rank, number in sorted(outcome.killed.items()):
        name, why = _name(number), _WHY.get(signal.Signals(number) if _is_known(number) else signal.SIGTERM)
        text = f"was ended by {name}{f' ({why})' if why else ''} without a word of its own; {_log(leg, rank)}"
        return Failure(rank=rank, text=text)
    if not outcome.exit_code or outcome.interrupted_by is not None:
        return None
    logs = [f"rank {rank}: {_log(leg, rank)}" for rank in range(_SHOWN_RANKS) if _has_log(leg, rank)]
    return Failure(rank=0, text="; ".join([f"ended with exit code {outcome.exit_code} without a word", *logs]))


def _is_known(number: int) -> bool:
    return number in {one.value for one in signal.Signals}


def _name(number: int) -> str:
    return signal.Signals(number).name if _is_known(number) else f"signal {number}"


def _has_log(leg: Leg, rank: int) -> bool:
    file = leg.log_file(rank)
    return file is not None and file.is_file()


def _log(leg: Leg, rank: int) -> str:
    file = leg.log_file(rank)
    if file is None or not file.is_file():
        return "it has left no log"
    line = last_line(file)
    return f"its log ({file}) is empty" if line is None else f"the last line of its log: {line!r} ({file})"


def last_line(file: Path) -> str | None:
    """Return the last line of ``file`` that is not empty, cut where it is long; None where there is none."""
    if not file.is_file():
        return None
    lines = [line.strip() for line in file.read_text(errors="replace").splitlines() if line.strip()]
    return None if not lines else lines[-1] if len(lines[-1]) <= _LONGEST else f"{lines[-1][:_LONGEST]}..."
