"""Says of an error what it is and where in the user's code it came up."""

import linecache
import re
from types import TracebackType

from ckptrun.run.watch.stacks import is_of_user_file, short_file

__all__ = ["words_of"]

# As in a stack that another process has sent as text.
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)', re.MULTILINE)


def words_of(error: BaseException) -> str:
    """Return type and message of ``error``, and the innermost line of the user's own code that it passed.

    E.g. ``AssertionError, at mine.py:12 in forward: assert x.isfinite().all()``.
    """
    text = str(error)
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = _of_text(text) or _of_traceback(error.__traceback__)
    return named if place is None else f"{named}, at {place}"


def _of_traceback(traceback: TracebackType | None) -> str | None:
    found = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_of_user_file(code.co_filename):
            found = _place(code.co_filename, traceback.tb_lineno, code.co_name)
        traceback = traceback.tb_next
    return found


def _of_text(text: str) -> str | None:
    """Of an error in a loader worker, whose stack is in its message."""
    frames = [match for match in _FRAME.finditer(text) if is_of_user_file(match["file"])]
    return None if not frames else _place(frames[-1]["file"], int(frames[-1]["line"]), frames[-1]["function"])


def _place(file: str, line: int, function: str) -> str:
    source = linecache.getline(file, line).strip()
    return f"{short_file(file)}:{line} in {function}{f': {source}' if source else ''}"
