"""Keeps Python's cycle collector out of stretches that only make records, tens of thousands of them, which all stay.

It would walk over them, and over all that the user's program holds, again and again: for 20,000 leaves it takes as long
as everything else in a save.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["collection_paused"]

_LOCK = threading.Lock()
_inside = 0
_was_enabled = False


@contextmanager
def collection_paused() -> Iterator[None]:
    """Pause it; the last of several threads to leave lets it go on, if it was on."""
    global _inside, _was_enabled  # the collector is one for the whole process
    with _LOCK:
        if not _inside:
            _was_enabled = gc.isenabled()
            gc.disable()
        _inside += 1
    try:
        yield
    finally:
        with _LOCK:
            _inside -= 1
            if not _inside and _was_enabled:
                gc.enable()
