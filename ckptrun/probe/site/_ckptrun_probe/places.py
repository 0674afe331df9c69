"""Which code of the job, or of its trainer, is about to do something with a file, and how often ranks have met.

Said only where crash states are built: what a system call did is then known by the line that made it.
"""

from __future__ import annotations

import functools
import os
import sys
import sysconfig
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import Any

__all__ = ["frames_of_job", "meeting_hooks"]

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120
_MOST_FRAMES = 3
_LIBRARIES = ("torch", "safetensors", "numpy", "fsspec", "_ckptrun_probe")
_MEETINGS = (
    "all_gather",
    "all_gather_into_tensor",
    "all_gather_object",
    "all_reduce",
    "all_to_all",
    "all_to_all_single",
    "barrier",
    "broadcast",
    "broadcast_object_list",
    "gather",
    "gather_object",
    "monitored_barrier",
    "reduce",
    "reduce_scatter",
    "reduce_scatter_tensor",
    "scatter",
    "scatter_object_list",
)


def frames_of_job() -> list[str]:
    """``file:line function``, innermost first, without the libraries that only carry it out."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and len(found) < _MOST_FRAMES:
        name = _told(frame.f_code.co_filename)
        if name is not None:
            found.append(f"{name}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return found


@functools.lru_cache(maxsize=4096)
def _told(file: str) -> str | None:
    """What a file is called to people; None: it belongs to a library, or to Python."""
    if not file or file.startswith("<") or file.startswith(_HERE):
        return None
    for key in ("purelib", "platlib"):
        folder = os.path.join(sysconfig.get_path(key), "")  # noqa: PTH118
        if file.startswith(folder):
            inside = file[len(folder) :]
            return None if inside.partition(os.sep)[0].removesuffix(".py") in _LIBRARIES else inside
    if file.startswith(os.path.join(sysconfig.get_path("stdlib"), "")):  # noqa: PTH118
        return None
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118
    return file.removeprefix(here)


def meeting_hooks(listener: Any) -> dict[str, Callable[[ModuleType], None]]:
    """What is to be done when a module is there in which ranks meet."""
    return {"torch.distributed": functools.partial(_hook_meetings, listener)}


def _hook_meetings(listener: Any, module: ModuleType) -> None:
    """Ranks that have come through a call have met there, if it is of all of them."""
    calls = sys.modules.get("torch.distributed.distributed_c10d")
    for name in _MEETINGS if calls is not None else ():
        original = getattr(calls, name, None)
        if original is not None:
            wrapped = _wrapped(listener, original)
            for holder in (calls, module):
                if getattr(holder, name, None) is original:
                    setattr(holder, name, wrapped)


def _wrapped(listener: Any, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def meeting(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        if result is None and _is_of_all(options.get("group")):
            listener.record.event("meeting", rank=listener.rank())
        return result

    return meeting


def _is_of_all(group: Any) -> bool:
    import torch.distributed as dist

    return group is None or group is dist.group.WORLD or dist.get_world_size(group) == dist.get_world_size()
