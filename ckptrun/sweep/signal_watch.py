"""Whether this process was told to end, though somebody else has answered. Torch-free."""

import os
import signal
from types import TracebackType
from typing import Self

__all__ = ["SignalWatch"]

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class SignalWatch:
    """Sees the signals that come while the ranks of a run are looked after, and puts the handlers back afterwards.

    The launcher answers Ctrl-C by itself, reports the run as failed like any other, and leaves its handlers in place.
    Python tells of a signal through the wakeup file whoever handles it. On the main thread only.
    """

    def __init__(self) -> None:
        self.was_told_to_end = False

    def __enter__(self) -> Self:
        handlers = {number: signal.getsignal(number) for number in _ENDING}
        # None: what was there before Python, and cannot be put back.
        self._handlers = {number: handler for number, handler in handlers.items() if handler is not None}
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        # One byte per signal. With the other end closed there is always an answer, if only an empty one.
        os.close(self._write)
        self.was_told_to_end = bool(set(os.read(self._read, 4096)) & set(_ENDING))
        os.close(self._read)
        if self.was_told_to_end and isinstance(error, Exception):
            # Raised by the launcher's handler at a place where nobody waits for it.
            raise KeyboardInterrupt from error
