"""Looks after the ranks of one start: passes on what this process is told, and ends what does not end by itself.

Nothing outlasts its time here, whatever user code does: a rank that

- stands still is killed after ``timeout_seconds`` and the better part of ``stop_seconds`` (see ``stillness.py``);
- was told to stop, or has lost a peer, is killed when ``stop_seconds`` and a margin are over;
- has done its part and stays (threads, handlers, destructors) is killed soon: that changes nothing any more.

Whether a rank has done its part it says itself. One that ends before, be it with exit code 0, has failed.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from ckptrun.launch.stillness import Stillness, usage_of
from ckptrun.run.watch.tether import Passed, Word, read_passed

__all__ = ["RankProcess", "Signals", "Supervisor"]

_LOOK_SECONDS = 0.1
_STILL_LOOK_SECONDS = 1.0
# Longer than ranks take to notice that their own time is over.
_MARGIN_SECONDS = 2.0
# What user code may still want to do once everything is done.
_FAREWELL_SECONDS = 3.0
# A second Ctrl-C that comes sooner is the same one: terminals send it to all processes.
_ECHO_SECONDS = 2.0
# A process that waits in the kernel cannot be killed; it is left behind.
_ABANDON_SECONDS = 10.0


class Signals:
    """The signals that come to this process while it looks after ranks, as a context manager. In other threads: none.

    Python's wakeup file is left to whoever has set it (see ``sweep.py``).
    """

    _NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

    def __init__(self) -> None:
        self.came: list[tuple[float, signal.Signals]] = []
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in self._NUMBERS:
                before = signal.getsignal(number)
                is_ignored = number == signal.SIGHUP and before is signal.SIG_IGN  # nohup
                # None: a handler that Python has not set, and cannot put back.
                if before is not None and not is_ignored:
                    self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.came.append((time.monotonic(), signal.Signals(number)))


@dataclass(slots=True, kw_only=True)
class RankProcess:
    """A rank, from outside."""

    rank: int
    process: BaseProcess
    connection: Connection
    progress: Path
    stillness: Stillness
    done: int | None = None
    """What its part came to; None: it has not said that it was done."""
    ended_at: float | None = None
    exit_code: int = 0
    was_killed_here: bool = False

    @property
    def code(self) -> int:
        """What counts."""
        return self.exit_code if self.done is None else self.done

    @property
    def failed(self) -> bool:
        """Whether it ended before it was done."""
        return self.ended_at is not None and self.done is None

    def passed(self) -> Passed:
        """How far it is."""
        return read_passed(self.progress)

    def tell(self, word: Word) -> None:
        """Say something to it, if it still listens."""
        with contextlib.suppress(OSError):
            self.connection.send_bytes(word.encode())

    def signal(self, number: int) -> None:
        """Send it a signal, unless it has ended: its number may be somebody else's by then."""
        if self.ended_at is None and self.process.exitcode is None and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


class Supervisor:
    """Looks after ``ranks``.

    Args:
        ranks: All of one start.
        signals: What this process is told.
        told: A pipe that is readable when the fork server was told to end.
        stop_seconds: How long ranks have to save.
        on_early_end: Called at most once, with a rank that ended before it was done, or stands still, and a text.
    """

    def __init__(
        self,
        ranks: Sequence[RankProcess],
        *,
        signals: Signals,
        told: int,
        stop_seconds: float,
        on_early_end: Callable[[int, str], None],
    ) -> None:
        self._ranks = ranks
        self._signals = signals
        self._told = told
        self._stop_seconds = stop_seconds
        self._on_early_end = on_early_end
        self._kill_at: float | None = None
        self._asked_at: float | None = None
        self._answered = 0
        self._looked_at = time.monotonic()
        self._has_spoken = False

    def run(self) -> None:
        """Return when no rank is left."""
        while alive := [rank for rank in self._ranks if rank.ended_at is None]:
            self._wait(alive)
            now = time.monotonic()
            self._answer(now)
            self._take_leave(alive, now)
            self._look(now)
            if self._kill_at is not None and now > self._kill_at:
                self._kill(now)

    def _wait(self, alive: Sequence[RankProcess]) -> None:
        """Return when something happens, and now and then."""
        open_ends = [rank.connection for rank in alive if not rank.connection.closed]
        wait([*(rank.process.sentinel for rank in alive), *open_ends, self._told], timeout=_LOOK_SECONDS)
        for rank in alive:
            self._listen(rank)

    def _listen(self, rank: RankProcess) -> None:
        if rank.connection.closed:
            return
        try:
            while rank.connection.poll():
                rank.done = int(rank.connection.recv_bytes())
        except (EOFError, OSError):
            rank.connection.close()

    def _answer(self, now: float) -> None:
        """Pass on what this process, or the fork server, was told."""
        if wait([self._told], timeout=0):
            os.read(self._told, 4096)
            # To this process it is as if it had been told itself: whoever else listens here shall know.
            if self._signals.came or threading.current_thread() is not threading.main_thread():
                self._ask(Word.stop, now)
            else:
                os.kill(os.getpid(), signal.SIGTERM)
        came = self._signals.came[self._answered :]
        self._answered += len(came)
        first = self._signals.came[0][0] if self._signals.came else now
        for at, number in came:
            if number is signal.SIGQUIT or (number is signal.SIGINT and at - first > _ECHO_SECONDS):
                self._kill(now)
            elif number is signal.SIGINT:
                # From a terminal they have it already; then they wait for no second one.
                for rank in self._ranks:
                    rank.signal(signal.SIGINT)
                self._limit(now)
            else:
                self._ask(Word.stop, now)

    def _ask(self, word: Word, now: float) -> None:
        for rank in self._ranks:
            if rank.ended_at is None:
                rank.tell(word)
        self._limit(now)

    def _limit(self, now: float) -> None:
        if self._kill_at is None:
            self._kill_at = now + self._stop_seconds + _MARGIN_SECONDS

    def _take_leave(self, alive: Sequence[RankProcess], now: float) -> None:
        """Note who has ended; when one was not done, tell the others that it is gone."""
        for rank in alive:
            code = rank.process.exitcode
            if code is None:
                continue
            # What it has said before it ended.
            self._listen(rank)
            rank.exit_code, rank.ended_at = code, now
            if rank.failed:
                # Whoever was told to end has nothing to say, and of signals the exit code does.
                if code >= 0 and self._kill_at is None:
                    self._speak(rank, f"ended with exit code {code} before it was done, as if by os._exit({code})")
                self._ask(Word.end, now)
        if all(rank.done is not None or rank.ended_at is not None for rank in self._ranks) and self._kill_at is None:
            self._kill_at = now + min(self._stop_seconds, _FAREWELL_SECONDS)

    def _look(self, now: float) -> None:
        """Find ranks that stand still."""
        if now - self._looked_at < _STILL_LOOK_SECONDS:
            return
        self._looked_at = now
        for rank in self._ranks:
            if rank.ended_at is not None or rank.done is not None or rank.process.pid is None:
                continue
            passed = rank.passed()
            if rank.stillness.look(now, passed, usage_of(rank.process.pid)):
                where = f"after {passed.point} of step {passed.step}" if passed.number else "before its first step"
                waited = now - rank.stillness.since
                self._speak(rank, f"stands still {where} for {waited:.0f} s, more than launch.timeout_seconds allows")
                self._kill(now)
                return

    def _speak(self, rank: RankProcess, what: str) -> None:
        if not self._has_spoken:
            self._has_spoken = True
            self._on_early_end(rank.rank, f"rank {rank.rank} {what}.")

    def _kill(self, now: float) -> None:
        """Kill who is left; give up on those whom that does not end."""
        for rank in self._ranks:
            if rank.ended_at is None:
                if rank.was_killed_here:
                    rank.exit_code, rank.ended_at = -signal.SIGKILL, now
                rank.was_killed_here = True
                rank.signal(signal.SIGKILL)
        self._kill_at = now + _ABANDON_SECONDS
