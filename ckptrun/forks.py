"""Which process this is, told across ``fork()``: what a process holds for itself must not be used by a child of it.

Threads, locks, memory that is shared, connections and locked files are copied into a forked child as if they were its
own: a thread is gone there, a lock may be held for ever, and what the child does to the rest reaches its parent. Who
keeps such a thing beyond a call keeps :func:`this_process` beside it, and makes it anew, or refuses, where that has
changed. A process id would not do: they are used again. Torch-free.
"""

import os
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["OfProcess", "Process", "fork_count", "only_here", "this_process"]

_T = TypeVar("_T")


class Process:
    """Stands for one process; compared by identity. One that has been pickled stands for no process."""

    __slots__ = ()


_process = Process()
_forks = 0


def this_process() -> Process:
    """Return the mark of this process: the same one for as long as it lives, another one in a forked child."""
    return _process


def only_here(function: Callable[[], None]) -> Callable[[], None]:
    """Return ``function``, which does nothing in a forked child: a copy is collected there, what it ends is ours."""
    process = _process

    def call() -> None:
        if process is _process:
            function()

    return call


def fork_count() -> int:
    """Return how often this process and those that it was forked from have forked so far.

    Where it has not changed, no other process has got what has been made meanwhile.
    """
    return _forks


def _note_fork() -> None:
    global _forks  # the process is one
    _forks += 1


def _become_another() -> None:
    global _process  # likewise
    _process = Process()
    _note_fork()


os.register_at_fork(after_in_parent=_note_fork, after_in_child=_become_another)


class OfProcess(Generic[_T]):
    """Something that each process makes for itself, when it first asks for it.

    Args:
        make: Called in the process that asks.
    """

    def __init__(self, make: Callable[[], _T]) -> None:
        self._make = make
        self._made: tuple[Process, _T] | None = None

    def get(self) -> _T:
        """Return the one of this process."""
        made = self._made
        if made is None or made[0] is not _process:
            made = self._made = (_process, self._make())
        return made[1]
