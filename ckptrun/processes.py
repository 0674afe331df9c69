"""Processes beside a rank: they must not outlive who started them, and leave signals to the rank. Torch-free.

Schedulers, service managers, terminals and ``kill`` of a group send their signal to every process of a job. The rank
answers it, perhaps by saving, and needs its helpers for that: they sit it out, and end with the rank.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

__all__ = ["LEFT_TO_RANKS", "children_of", "end_with_parent", "held_back", "print_to", "sit_out", "threads_of"]

LEFT_TO_RANKS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What reaches all processes of a job, and is for its ranks to answer."""


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Start a process with ``LEFT_TO_RANKS`` blocked. It may sit them out by that, or lift it once it can answer.

    Other threads of this process get what comes meanwhile, or this one gets it afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_RANKS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def sit_out() -> None:
    """From here on ``LEFT_TO_RANKS`` mean nothing to this process, and what they would to those that it starts."""
    for number in LEFT_TO_RANKS:
        # Neither ignored nor blocked: programs that are started from here would inherit that, and never end by it.
        signal.signal(number, _go_on)
        signal.siginterrupt(number, False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_RANKS)


def _go_on(signal_number: int, frame: FrameType | None) -> None:
    """Do nothing."""


def end_with_parent() -> None:
    """From here on this process ends at once, without a word, when the one that started it is gone, however that ended.

    For processes that ``multiprocessing`` has started, be it through a fork server; others are left alone.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for, args=(parent,), name="EndWithParent", daemon=True).start()


def _wait_for(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)


def print_to(log: Path) -> None:
    """Let everything that this process and those that it starts print go to ``log``, behind what is there."""
    log.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def threads_of(pid: int) -> list[Path]:
    """What the system tells of each thread of a process; none of one that has ended, or where it tells nothing."""
    folder = Path(f"/proc/{pid}/task")
    try:
        # Not by a glob: that fails when the process ends between two of its looks.
        return [folder / name for name in os.listdir(folder)]  # noqa: PTH208
    except OSError:
        return []


def children_of(pid: int) -> list[int]:
    """Processes that a process has started and that are its own still; none of one that has ended."""
    found: list[int] = []
    for thread in threads_of(pid):
        with contextlib.suppress(OSError):
            found += map(int, (thread / "children").read_text().split())
    return found
