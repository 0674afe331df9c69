"""Ends ranks that a planned fault has made stand still, where none is left to notice.

When one rank hangs, the others say so and end (see ``watchdog``). When all do, or there is only one, only who started
them can tell: the fault is on record, and nothing has ended since. What a scheduler does to such a job is done here.
"""

import os
import signal
import threading
import time
from multiprocessing import forkserver
from pathlib import Path
from types import TracebackType
from typing import Self

from ckptrun.config.fault import FaultKind
from ckptrun.fault import FaultRecord

__all__ = ["Overdue"]

_LOOK_SECONDS = 0.5
_STANDS_STILL = (FaultKind.hang, FaultKind.sigstop)


class Overdue:
    """Watches one start from outside, as a context manager around it.

    Args:
        run_dir: Of the run under proof.
        seconds: How long after such a fault the ranks may still be there; more than they need to notice by themselves.
    """

    def __init__(self, run_dir: Path, *, seconds: float) -> None:
        self._record = FaultRecord(run_dir)
        self._seconds = seconds
        self._known = {(fault.index, fault.rank) for fault in self._record.fired()}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="Overdue", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        since: float | None = None
        while not self._over.wait(_LOOK_SECONDS):
            if since is None and self._stand_still():
                since = time.monotonic()
            if since is not None and time.monotonic() - since > self._seconds:
                _kill_ranks()

    def _stand_still(self) -> bool:
        return any(f.kind in _STANDS_STILL and (f.index, f.rank) not in self._known for f in self._record.fired())


def _kill_ranks() -> None:
    """Kill the children of the fork server: the ranks that this process has started."""
    server = getattr(forkserver._forkserver, "_forkserver_pid", None)
    for task in Path(f"/proc/{server}/task").glob("*/children"):
        for process in task.read_text().split():
            os.kill(int(process), signal.SIGKILL)
