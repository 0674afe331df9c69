"""Keeps Python's cycle collector out of stretches that only make records, tens of thousands of them, which all stay.

It would walk over them, and over all that the user's program holds, again and again: for 20,000 leaves it takes as long
as everything else in a save.
"""

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collection_paused"]

_LOCK = threading.Lock()
_OWN = threading.local()
_inside = 0
_was_enabled = False


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause it; the last of several threads to leave lets it go on, if it was on."""
    global _inside, _was_enabled  # the collector is one for the whole process
    with _LOCK:
        # In this order, because another thread may fork between any two of these: see _start_anew().
        is_first = not _inside
        _was_enabled = gc.isenabled() if is_first else _was_enabled
        _inside += 1
        if is_first:
            gc.disable()
    _OWN.inside = _own() + 1
    try:
        yield
    finally:
        _OWN.inside -= 1
        with _LOCK:
            if _inside == 1 and _was_enabled:
                gc.enable()
            _inside -= 1


def _own() -> int:
    """How often this thread is inside."""
    return getattr(_OWN, "inside", 0)


def _start_anew() -> None:
    """In a forked child: the other threads, which are not here, never leave, and one of them may hold the lock."""
    global _LOCK, _inside  # as above
    _LOCK = threading.Lock()
    if _inside and not _own() and _was_enabled:
        gc.enable()
    _inside = _own()


os.register_at_fork(after_in_child=_start_anew)
