"""What the job does with files in its folder, as Python's audit events tell it: opened to be written, renamed, removed.

Some trainers save to memory first and write that with a function of their own: what a save in memory was for is the
file that is opened next.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

from _ckptrun_probe.places import frames_of_job
from _ckptrun_probe.record import quietly

__all__ = ["Inside", "move_hooks", "watch_files"]

_MOVES = ("os.rename", "shutil.move")
_EVENTS = (*_MOVES, "open", "os.remove", "shutil.rmtree")
_FURTHER = ("os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate")
"""Events that are only of interest with the code that they come from."""
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch_files(listener: Any) -> None:
    """Listen to the files of this process from here on."""
    is_inside = Inside(listener.plan.output)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES and is_inside(path):
                listener.on_file_written(_absolute(path))
            return
        if event in _MOVES and is_inside(arguments[1]) and _comes_whole(listener.plan, is_inside, *arguments[:2]):
            listener.on_file_written(_absolute(arguments[1]))
        listener.on_file_changed(event, [_absolute(path) for path in arguments[: 2 if event in _MOVES else 1]])

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS and not (listener.plan.tells_places and event in _FURTHER):
            return
        paths = arguments[: 2 if event in (*_MOVES, "os.link", "os.symlink") else 1]
        is_known = any(is_inside(path) for path in paths)
        if is_known and listener.plan.tells_places:
            quietly(listener.record, event, _tell_place, listener.record, event, arguments)
        if is_known and event in _EVENTS:
            quietly(listener.record, event, hear, event, arguments)
            if event != "open" and listener.plan.faults:
                listener.reached("before_commit" if event in _MOVES else "removing", begins=False)

    sys.addaudithook(audit)


def move_hooks(listener: Any) -> dict[str, Callable[[ModuleType], None]]:
    """What is to be done with the modules that rename, where a fault strikes afterwards: audit events come before."""
    if not any(fault.point == "after_commit" for fault in listener.plan.faults):
        return {}
    is_inside = Inside(listener.plan.output)

    def hook(module: ModuleType, names: tuple[str, ...]) -> None:
        for name in names:
            setattr(module, name, told(getattr(module, name)))

    def told(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def move(before: Any, after: Any, *arguments: Any, **options: Any) -> Any:
            result = original(before, after, *arguments, **options)
            if is_inside(after):
                listener.reached("after_commit", begins=False)
            return result

        return move

    return {"os": lambda module: hook(module, ("rename", "replace")), "shutil": lambda module: hook(module, ("move",))}


def _comes_whole(plan: Any, is_inside: Any, before: Any, after: Any) -> bool:
    """Whether a file was written elsewhere, or under a name of no checkpoint, and is put in its place."""
    if not is_inside(before):
        return True
    return plan.is_checkpoint(_absolute(after)) and not plan.is_checkpoint(_absolute(before))


def _tell_place(record: Any, event: str, arguments: tuple[Any, ...]) -> None:
    """Say which code is about to change a file."""
    if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & _WRITES):
        return
    paths = arguments[: 1 if event == "open" else 2]
    names = [_absolute(path) for path in paths if isinstance(path, (str, bytes, os.PathLike))]
    record.event("place", names=names, frames=frames_of_job())


def _absolute(path: Any) -> str:
    return os.path.abspath(os.fsdecode(path))  # noqa: PTH100


class Inside:
    """Says whether a path lies in a folder, whatever links lead there."""

    def __init__(self, folder: str) -> None:
        self._folder = os.path.join(os.path.realpath(folder), "")  # noqa: PTH118
        self._known: dict[str, bool] = {}

    def __call__(self, path: Any) -> bool:
        if not isinstance(path, (str, bytes, os.PathLike)):
            return False
        parent, name = os.path.split(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100
        if parent not in self._known:
            self._known[parent] = os.path.join(os.path.realpath(parent), "").startswith(self._folder)  # noqa: PTH118
        return self._known[parent] and bool(name)
