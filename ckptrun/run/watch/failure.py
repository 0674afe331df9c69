"""Lets a failing rank speak once, first, and alone: what brought it down, not what its end did to the others."""

import contextlib
import linecache
import re
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from torch._C._distributed_c10d import Store

from ckptrun.console import say_error, say_interrupted
from ckptrun.errors import CkptrunError
from ckptrun.evidence.difference import component_of
from ckptrun.evidence.run_folder import EVENTS
from ckptrun.evidence.starts import EventKind
from ckptrun.files import append_line
from ckptrun.process_groups import launcher_store
from ckptrun.run.watch.broken_connection import is_broken_connection, is_secondary
from ckptrun.run.watch.stacks import is_of_user_file, short_file

__all__ = ["has_spoken", "record_once", "report_once", "say_once", "speak_once", "words_of"]

_KEY = "ckptrun_failure"
_PATIENCE_SECONDS = 3.0
# As in a stack that another process has sent as text.
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>\S+)', re.MULTILINE)


def report_once(  # noqa: PLR0913  # one caller passes all of them by name
    error: BaseException,
    *,
    rank: int,
    store: Store | None,
    interrupted: bool,
    run_dir: Path,
    was_ended: bool,
    about_to_speak: Callable[[], None],
) -> None:
    """Print and record ``error`` unless another rank has, or will have, a better one to print.

    A rank whose peer died sees only a broken connection; it waits for the peer's own word before it speaks. The store
    belongs to the launcher and outlives the peer. A rank that the launcher has told to end says nothing of broken
    connections: the launcher knows why. From ``about_to_speak`` on nobody may end this rank before it has spoken: as
    soon as another rank sees that one is going to, it ends, and the launcher ends the rest.
    """
    secondary = is_secondary(error)
    if secondary and was_ended:
        return
    patience_seconds = _PATIENCE_SECONDS if secondary else 0.0
    if not _claim(store, rank, patience_seconds=patience_seconds, about_to_speak=about_to_speak):
        return
    _record(error, rank=rank, run_dir=run_dir, secondary=secondary)
    if interrupted or isinstance(error, KeyboardInterrupt):
        say_interrupted()
    elif isinstance(error, CkptrunError):
        say_error(f"ckptrun: {error}")
    elif is_broken_connection(error):
        say_error(
            f"ckptrun: rank {rank} lost contact with another rank, which ended without a word or was too slow "
            f"(launch.timeout_seconds): {str(error).splitlines()[0]}"
        )
    else:
        say_error(f"ckptrun: rank {rank} failed:\n{''.join(traceback.format_exception(error))}")


def speak_once(text: str, *, rank: int, store: Store, run_dir: Path) -> None:
    """Print and record ``text``, what brings the run down, unless a rank has spoken. In any thread."""
    if _claim(store, rank, patience_seconds=0.0):
        _record_words(text, rank=rank, run_dir=run_dir)
        say_error(f"ckptrun: {text}")


def record_once(text: str, *, rank: int, store: Store, run_dir: Path) -> bool:
    """For who has started the ranks: record ``text`` of ``rank`` and return True, unless a rank has spoken."""
    if not _claim(store, rank, patience_seconds=0.0, claimant="launcher"):
        return False
    _record_words(text, rank=rank, run_dir=run_dir)
    return True


def say_once(error: CkptrunError, *, rank: int) -> None:
    """Print a mistake that was found before anything was built; as a rule every rank finds the same."""
    if _claim(launcher_store(), rank, patience_seconds=0.0):
        say_error(f"ckptrun: {error}")
    else:
        # A launcher ends all ranks when the first one ends: let the other be heard.
        time.sleep(_PATIENCE_SECONDS)


def has_spoken(store: Store) -> bool:
    """Whether a rank has said what brought the run down. RuntimeError: nobody can tell any more."""
    return bool(store.check([_KEY]))


def _record(error: BaseException, *, rank: int, run_dir: Path, secondary: bool = False) -> None:
    leaves = [str(leaf) for leaf in getattr(error, "leaves", ())]
    notes = " ".join(getattr(error, "__notes__", ()))
    _append(
        run_dir,
        rank=rank,
        text=f"{words_of(error)}{f' ({notes})' if notes else ''}",
        leaves=leaves,
        check=getattr(error, "check", None),
        component=getattr(error, "component", None) or (component_of(leaves[0]) if leaves else None),
        secondary=secondary,
    )


def _record_words(text: str, *, rank: int, run_dir: Path) -> None:
    """``text`` says itself of which rank it tells; whoever shows a failure names that first."""
    words = text.removeprefix(f"rank {rank} ")
    _append(run_dir, rank=rank, text=words, leaves=[], check=None, component=None, secondary=False)


def _append(run_dir: Path, **facts: Any) -> None:
    with contextlib.suppress(OSError):
        append_line(run_dir / EVENTS, {"event": EventKind.failure, **facts})


def _claim(
    store: Store | None,
    rank: int,
    *,
    patience_seconds: float,
    claimant: str | None = None,
    about_to_speak: Callable[[], None] = lambda: None,
) -> bool:
    """Whether this rank is the one to speak."""
    if store is None:
        # Nobody can tell. Rank 0 finds most mistakes too; if not, the others speak, better twice than not at all.
        time.sleep(_PATIENCE_SECONDS if rank else 0.0)
        about_to_speak()
        return True
    until = time.monotonic() + patience_seconds
    is_gone = False
    try:
        while time.monotonic() < until:
            if store.check([_KEY]):
                return False
            time.sleep(0.05)
    except RuntimeError:
        # Rank 0 hosted the store and is dead, so somebody must speak.
        is_gone = True
    claimant = claimant or str(rank)
    about_to_speak()
    try:
        return is_gone or bool(store.compare_set(_KEY, "", claimant).decode() == claimant)
    except RuntimeError:
        return True


def words_of(error: BaseException) -> str:
    """Return type and message of ``error``, and the innermost line of the user's own code that it passed.

    E.g. ``AssertionError, at mine.py:12 in forward: assert x.isfinite().all()``.
    """
    text = str(error)
    named = f"{type(error).__name__}: {text}" if text else type(error).__name__
    place = _place_in_text(text) or _place_in_traceback(error.__traceback__)
    return named if place is None else f"{named}, at {place}"


def _place_in_traceback(traceback: TracebackType | None) -> str | None:
    found = None
    while traceback is not None:
        code = traceback.tb_frame.f_code
        if is_of_user_file(code.co_filename):
            found = _place(code.co_filename, traceback.tb_lineno, code.co_name)
        traceback = traceback.tb_next
    return found


def _place_in_text(text: str) -> str | None:
    """Of an error in a loader worker, whose stack is in its message."""
    frames = [match for match in _FRAME.finditer(text) if is_of_user_file(match["file"])]
    return None if not frames else _place(frames[-1]["file"], int(frames[-1]["line"]), frames[-1]["function"])


def _place(file: str, line: int, function: str) -> str:
    source = linecache.getline(file, line).strip()
    return f"{short_file(file)}:{line} in {function}{f': {source}' if source else ''}"
