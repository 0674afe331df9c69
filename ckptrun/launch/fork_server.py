"""The process that ranks are forked from: it has loaded torch, so that they start in tenths of a second.

Everything that is loaded here is shared by all ranks and never collected: freezing it spares each rank a walk over all
of torch's objects whenever Python's collector does its rounds, and the copies of memory pages that this walk causes.

[Note: signals of the fork server]
Schedulers, service managers and ``kill`` of a group send their signal to every process of a job, this one too, and the
ranks must outlive it to save. So it never ends by one: it passes on that it was told to end, to who started it. SIGINT,
SIGTERM and SIGHUP are blocked before it is loaded and in each rank until that can answer (see ``rank.py``).
"""

import contextlib
import ctypes
import gc
import importlib
import os
import signal
import socket
import warnings
from collections.abc import Sequence
from multiprocessing import forkserver
from multiprocessing.connection import Connection

from ckptrun.processes import LEFT_TO_RANKS

__all__ = ["be_forked_server", "main"]

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP)
_PR_SET_CHILD_SUBREAPER = 36


def main(listener: int, alive: int, told: int, loaded: int, preload: Sequence[str] = ()) -> None:
    """Be the fork server until nobody holds the other end of ``alive``.

    Args:
        listener: A listening socket; whoever connects gets a process (see ``multiprocessing.forkserver``).
        alive: A pipe to read from.
        told: A pipe to write to when this process is told to end.
        loaded: A pipe to write to when torch is loaded.
        preload: Further modules to load.
    """
    # The first DTensor imports the compiler; every rank would do it again.
    import torch._dynamo  # noqa: F401

    import ckptrun.launch.rank  # noqa: F401

    for name in preload:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    _serve(listener, alive, told, loaded)


def be_forked_server(
    listener: socket.socket,
    alive: Connection,
    told: Connection,
    loaded: Connection,
    outputs: tuple[Connection, Connection],
    group: int,
) -> None:
    """Be a fork server in a process that was forked from one, and has loaded what that has.

    Args:
        listener: A listening socket, as in :func:`main`.
        alive: What it ends with, as there.
        told: Where it says that it was told to end.
        loaded: Where it says that it can fork.
        outputs: Where it and its children print to: the standard output and errors of who wants it.
        group: The process group of who wants it.
    """
    os.setpgid(0, group)
    for number, output in enumerate(outputs, 1):
        os.dup2(output.fileno(), number)
        output.close()
    pipes = [os.dup(pipe.fileno()) for pipe in (alive, told, loaded)]
    for pipe in (alive, told, loaded):
        pipe.close()
    _serve(listener.detach(), *pipes)


def _serve(listener: int, alive: int, told: int, loaded: int) -> None:
    _adopt_orphans()
    for number in _PASSED_ON:
        signal.signal(number, lambda *_: _pass_on(told))
    forking = _Forking(told)
    os.register_at_fork(before=forking.before, after_in_parent=forking.in_parent, after_in_child=forking.in_child)
    forking.in_parent()
    with contextlib.suppress(OSError):
        os.write(loaded, b"L")
    os.close(loaded)
    forkserver.main(listener, alive, [])


def _pass_on(told: int) -> None:
    # Who has started this process may be gone; then it ends soon.
    with contextlib.suppress(OSError):
        os.write(told, b"T")


class _Forking:
    """Lets children begin with all of ``LEFT_TO_RANKS`` blocked. In their own children, nothing of this holds."""

    def __init__(self, told: int) -> None:
        self._is_server = True
        self._told = told

    def before(self) -> None:
        if self._is_server:
            signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_RANKS)

    def in_parent(self) -> None:
        if self._is_server:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _PASSED_ON)

    def in_child(self) -> None:
        if self._is_server:
            self._is_server = False
            os.close(self._told)
            for number in _PASSED_ON:
                signal.signal(number, signal.SIG_DFL)


def _adopt_orphans() -> None:
    """Become the parent of what a rank leaves behind, so that it can be found and ended with the rank's start."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # multiprocessing expects no other children than those it has made.
    warnings.filterwarnings("ignore", message="forkserver: waitpid returned unexpected pid")
