"""Whether a rank stands still, seen from outside: where it is alone, or all of them stand, no rank is left to notice.

[Note: what standing still is]
A rank notes each point that it passes. One that passes none for the limit stands still

- within a step, from its second one on: whatever it does there, others would have waited for it as long in vain;
- between steps (a save, a callback), if neither it nor its children read or write a byte meanwhile;
- before its second step (data are fetched, a model is compiled), if nor do they use the processor.

So neither a long download, nor a compiler, nor a slow disk is mistaken for a rank that hangs.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from ckptrun.config.fault import FaultPoint
from ckptrun.processes import children_of, threads_of
from ckptrun.run.watch.tether import Passed

__all__ = ["Stillness", "Usage", "usage_of"]

# Points after which a rank is within a step.
_WITHIN_STEP = frozenset(
    {FaultPoint.before_step, FaultPoint.after_forward, FaultPoint.mid_accumulation, FaultPoint.after_backward}
)
# What our own threads need to watch; a tick of the clock by which Linux counts is 10 ms.
_IDLE_SHARE = 0.03
_IDLE_SECONDS = 0.03


@dataclass(frozen=True, slots=True)
class Usage:
    """What a rank and its children have used so far."""

    processor_seconds: float = 0.0
    """Used or waited for."""
    bytes_moved: int = 0


class Stillness:
    """Follows one rank. Pure: the caller says what time it is.

    Args:
        limit_seconds: How long it may pass no point.
        now: When the rank was started.
    """

    def __init__(self, *, limit_seconds: float, now: float) -> None:
        self._limit = limit_seconds
        self._passed = Passed()
        self._since = now
        self._looked_at = now
        self._usage: Usage | None = None
        self._processor_at = now
        self._moved_at = now

    @property
    def since(self) -> float:
        """When the rank passed its last point."""
        return self._since

    def look(self, now: float, passed: Passed, usage: Usage) -> bool:
        """Take note of where the rank is; return whether it stands still."""
        last, self._usage = self._usage or usage, usage
        idle = _IDLE_SECONDS + _IDLE_SHARE * (now - self._looked_at)
        if usage.bytes_moved != last.bytes_moved:
            self._moved_at = now
        if abs(usage.processor_seconds - last.processor_seconds) > idle:
            self._processor_at = now
        self._looked_at = now
        if passed.number != self._passed.number:
            self._passed, self._since = passed, now
            return False
        quiet = [self._since]
        if passed.begun <= 1:
            quiet += [self._moved_at, self._processor_at]
        elif passed.point not in _WITHIN_STEP:
            quiet += [self._moved_at]
        return now - max(quiet) > self._limit


def usage_of(pid: int) -> Usage:
    """What a process and its children have used; what has ended meanwhile counts for whoever waited for it."""
    processor, moved = 0.0, 0
    for each in _with_children(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            processor += _processor_seconds(each)
            lines = Path(f"/proc/{each}/io").read_text().splitlines()
            moved += sum(int(line.split()[1]) for line in lines[:2])
    return Usage(processor, moved)


def _processor_seconds(pid: int) -> float:
    """What its threads have used of the processor, or waited for: on a busy machine they get little."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    for thread in threads_of(pid):
        with contextlib.suppress(OSError, ValueError, IndexError):
            used += int((thread / "schedstat").read_text().split()[1]) / 1e9
    return used


def _with_children(pid: int) -> list[int]:
    found, todo = [], [pid]
    while todo:
        process = todo.pop()
        found.append(process)
        todo += children_of(process)
    return found
