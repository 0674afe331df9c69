"""SIGTERM as a notice: the run is to save at the next step boundary and to end. Torch-free.

[Note: two kinds of SIGTERM]
A scheduler that wants the machine back sends it, and so does torchrun to the ranks that are left when one has died.
The first is answered by the main thread, which looks at ``asked`` at each step boundary. After the second it may never
come there: it waits in C++ for a rank that is gone, where no Python handler runs. So the handler of the C level writes
into a pipe, and a thread that reads it ends the process when a peer has reported a failure, when the grace is over, or
when SIGTERM comes again. Nothing here is printed: whoever failed speaks. Our own launcher says by words, over a tether,
which of the two it means. SIGHUP, from a terminal that is gone, is the same notice, unless it is ignored (nohup).
"""

import contextlib
import functools
import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn, assert_never

from ckptrun.run.watch.tether import Tether, Word

__all__ = ["Preemption"]

EXIT_CODE = 128 + signal.SIGTERM
_POLL_SECONDS = 0.1
_CLOSE = b"\0"
_NOTICES = (signal.SIGTERM, signal.SIGHUP)


class Preemption:
    """Whether this rank was asked to end, and the end of it if it does not.

    Args:
        grace_seconds: How long after SIGTERM the process may live, to take its step to the end and to save.
        echo_seconds: A second SIGTERM that comes sooner is the same notice: schedulers send it to all processes, and
            torchrun passes on what it gets.
        tether: To the launcher, if that is our own.
    """

    def __init__(self, *, grace_seconds: float, echo_seconds: float = 2.0, tether: Tether | None = None) -> None:
        self._grace_seconds = grace_seconds
        self._echo_seconds = echo_seconds
        self._tether = tether
        self._asked_at: float | None = None
        self._speaks = threading.Event()
        self._asked = threading.Event()
        self._closed = threading.Event()
        self._peer_failed: Callable[[], bool] | None = None
        self._pipe: tuple[int, int] | None = None
        self._before: dict[int, Any] = {}
        self._wakeup_before = -1
        self._reader = threading.Thread(target=self._read, name="Preemption", daemon=True)

    @property
    def asked(self) -> bool:
        """Whether SIGTERM has come. It stays true."""
        return self._asked.is_set()

    def listen(self) -> None:
        """From here on SIGTERM is a notice, also one that came before. Once, on the main thread."""
        self._pipe = os.pipe()
        os.set_blocking(self._pipe[1], False)
        self._wakeup_before = signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
        for number in _NOTICES:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._on_signal)
                # What user code waits for in C must not fail because of it.
                signal.siginterrupt(number, False)
        _LISTENING.append(self)
        _leave_children_alone()
        self._reader.start()
        # The local launcher has blocked them until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOTICES)

    def watch_peers(self, peer_failed: Callable[[], bool]) -> None:
        """Ask ``peer_failed`` during the grace whether some rank has reported a failure; then end at once.

        It is called in a thread, every tenth of a second, so it must not use a connection that another thread may be
        waiting on. A RuntimeError or OSError means that nobody can tell any more; then only the grace counts.
        """
        self._peer_failed = peer_failed

    def let_speak(self) -> None:
        """The rank fails, and is going to say why: only the end of the grace may still end it before that."""
        self._speaks.set()

    def close(self) -> None:
        """Let SIGTERM do what it did before; the grace ends no process any more. On the main thread."""
        if self._pipe is None or self._closed.is_set():
            return
        self._closed.set()
        signal.set_wakeup_fd(self._wakeup_before)
        for number, handler in self._before.items():
            # None: a handler that Python has not set, so it cannot put it back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        _LISTENING.remove(self)
        os.write(self._pipe[1], _CLOSE)
        self._reader.join()
        for end in self._pipe:
            os.close(end)

    def _on_signal(self, signal_number: int, frame: FrameType | None) -> None:
        # Python writes into the pipe only for signals that have a handler of Python.
        self._asked.set()

    def _read(self) -> None:
        if self._pipe is None:
            return
        signals = self._pipe[0]
        sources: list[Any] = [signals] if self._tether is None else [signals, self._tether]
        while True:
            since = self._asked_at
            patience = None if since is None else max(0.0, since + self._grace_seconds - time.monotonic())
            ready = select.select(sources, [], [], patience)[0]
            if not ready:
                _end()
            if self._tether is not None and self._tether in ready:
                self._hear(self._tether)
            if signals in ready:
                came = os.read(signals, 4096)
                if _CLOSE in came:
                    return
                if set(came) & set(_NOTICES):
                    self._ask(may_repeat=signal.SIGTERM not in came)

    def _hear(self, tether: Tether) -> None:
        """Do what the launcher says. When it is gone nobody waits for what this rank does."""
        match tether.read():
            case None:
                os._exit(1)
            case Word.stop:
                self._ask(may_repeat=True)
            case Word.end:
                if not self._speaks.is_set():
                    _end()
            case word:
                assert_never(word)

    def _ask(self, *, may_repeat: bool) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            self._asked.set()
            threading.Thread(target=self._poll_peers, name="PreemptionPeers", daemon=True).start()
        elif not may_repeat and now - self._asked_at >= self._echo_seconds:
            _end()

    def _poll_peers(self) -> None:
        # In a thread of its own: what it asks may never answer, and the grace must end nevertheless.
        with contextlib.suppress(RuntimeError, OSError):
            while not self._closed.wait(_POLL_SECONDS):
                if self._peer_failed is not None and self._peer_failed() and not self._speaks.is_set():
                    _end()


_LISTENING: list[Preemption] = []
_FORKING = threading.local()


@functools.cache
def _leave_children_alone() -> None:
    """Forked children get SIGTERM's default back: they must end by it, and not write into this process's pipe."""
    os.register_at_fork(before=_before_fork, after_in_parent=_go_on, after_in_child=_become_child)


def _before_fork() -> None:
    # One that comes before the child has its own answer would be lost.
    _FORKING.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _NOTICES)


def _go_on() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _FORKING.mask)


def _become_child() -> None:
    if _LISTENING:
        signal.set_wakeup_fd(-1)
        for number in _LISTENING[-1]._before:
            signal.signal(number, signal.SIG_DFL)
        _LISTENING.clear()
    _go_on()


def _end() -> NoReturn:
    os._exit(EXIT_CODE)
