"""Runs a function in a child forked from this very process, with all that the process has at that moment."""

import os
import weakref
from collections.abc import Callable
from typing import Any

from tests.support.forked import Outcome, fork


def in_child(function: Callable[..., Any], *args: Any, timeout_s: float = 60) -> Any:
    """Return what ``function(*args)`` returns in a forked child. One that raises or hangs fails the test."""
    outcome, error = fork(function, args, timeout_s)
    assert not error, error
    assert isinstance(outcome, Outcome)
    return outcome.value


_OF_OTHERS: set[Any] = set()


def leave_out_finalizers_of_others() -> None:
    """From here on :func:`exits` leaves out what is registered by now: clients of earlier tests, each with its pause."""
    _OF_OTHERS.update(weakref.finalize._registry)  # type: ignore[attr-defined]  # as below


def exits(function: Callable[..., Any]) -> int:
    """Call ``function`` in a child that then runs what is finalized at exit, of ckptrun and s3fs; return its exit code.

    Not all that is: what pytest and its plugins have registered is the session's.
    """
    pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = 1
    try:
        function()
        for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # nothing public lists them
            found = finalizer.peek() if finalizer not in _OF_OTHERS else None
            if found is not None and getattr(found[1], "__module__", "").startswith(("ckptrun", "s3fs")):
                finalizer()
        code = 0
    finally:
        os._exit(code)
