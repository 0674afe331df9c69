"""Runs functions in processes of their own that start in milliseconds: forked from one that has all modules loaded."""

import multiprocessing.connection
import os
import pickle
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from tests.support.fork_server import Printed
from tests.support.run_ranks import CONTEXT

__all__ = ["Forker", "Outcome", "fork"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a forked process ended."""

    code: int
    """Exit code; minus the signal that killed it."""
    value: Any
    """What the function returned."""


class Forker:
    """A process that forks others; it starts no threads, so that what is forked from it is whole. A context manager."""

    def __enter__(self) -> Self:
        self._printed = Printed()
        self._pipe, theirs = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def run(self, function: Callable[..., Any], *args: Any, timeout_s: float = 60) -> Outcome:
        """Call ``function(*args)`` in a new process; return when it has ended.

        ``function`` must be importable. One that raises, or does not end in time, fails the test.
        """
        self._pipe.send((function, args, timeout_s))
        outcome, error = self._pipe.recv()
        assert not error, f"{error}\nPrinted:\n{self._printed.read()[1][-4000:]}"
        return outcome


def _serve(pipe: multiprocessing.connection.Connection) -> None:
    while True:
        try:
            function, args, timeout_s = pipe.recv()
        except EOFError:
            return
        pipe.send(fork(function, args, timeout_s))


def fork(function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> tuple[Outcome, str]:
    """Call ``function(*args)`` in a child of this process; return how it ended, and its traceback."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        _run(function, args, theirs)
    os.close(theirs)
    raw, in_time = _read_until(ours, time.monotonic() + timeout_s)
    os.close(ours)
    if not in_time:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    value, error = pickle.loads(raw) if raw else (None, "")
    return Outcome(code, value), error if in_time else f"{function.__name__}{args} did not end within {timeout_s} s"


def _read_until(pipe: int, until: float) -> tuple[bytes, bool]:
    raw = b""
    while True:
        if not select.select([pipe], [], [], max(0.0, until - time.monotonic()))[0]:
            return b"", False
        more = os.read(pipe, 2**16)
        if not more:
            return raw, True
        raw += more


def _run(function: Callable[..., Any], args: tuple[Any, ...], pipe: int) -> NoReturn:
    code, said = 0, (None, "")
    try:
        said = function(*args), ""
    except BaseException:
        code, said = 1, (None, traceback.format_exc())
    os.write(pipe, pickle.dumps(said))
    sys.stderr.flush()
    os._exit(code)
