"""Tells from a thread's Python stack what the thread is doing: computing, or waiting for other ranks, or for its save.

From the innermost frame outwards, the first file that says something decides; files of Python and most of torch's say
nothing. So a model that sleeps is at work, though FSDP has called it, and a model in whose forward FSDP gathers waits.
"""

import functools
import sys
import sysconfig
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from types import FrameType

import torch

import ckptrun

__all__ = ["Activity", "activity_of", "describe", "is_of_checkpoint", "is_of_torch", "is_of_user_file", "short_file"]


class Activity(StrEnum):
    """What a thread, or the threads of a save together, are doing."""

    idle = "idle"
    """Nothing: no save is in flight."""
    working = "working"
    """Its own business: anything that needs no other rank."""
    collective = "collective"
    """It is inside a collective, or in backward, which reduces gradients."""
    device = "device"
    """It may wait for a CUDA device, on which collectives go on after the call has returned."""
    saving = "saving"
    """It waits for the threads of a checkpoint on this rank."""
    failing = "failing"
    """It has failed, and waits for a better word of another rank."""
    ended = "ended"
    """Its run is over."""

    @property
    def is_waiting(self) -> bool:
        """Whether other ranks must do something first."""
        return self in (Activity.collective, Activity.device, Activity.failing)


class _Says(StrEnum):
    """What a file on the stack says of the thread."""

    nothing = "nothing"
    future = "future"
    backward = "backward"
    collective = "collective"
    checkpoint = "checkpoint"
    failure = "failure"
    device = "device"
    work = "work"


_OURS = str(Path(next(iter(ckptrun.__path__))).resolve()) + "/"
_TORCH = str(Path(next(iter(torch.__path__))).resolve()) + "/"
_PYTHON = str(Path(sysconfig.get_path("stdlib")).resolve()) + "/"
_PACKAGES = ("/site-packages/", "/dist-packages/")

# The first prefix that fits decides.
_OF_OURS = {
    "checkpoint/": _Says.checkpoint,
    "engine/": _Says.checkpoint,
    "run/watch/failure.py": _Says.failure,
    # What touches the device and no file: where a rank waits for collectives that run on the device.
    **dict.fromkeys(("digest/", "model/", "optimizer/", "parallelism/", "precision/", "ranks.py"), _Says.device),
    **dict.fromkeys(("state/", "trainer.py"), _Says.device),
    "": _Says.work,
}
_OF_TORCH = {
    "distributed/checkpoint/": _Says.checkpoint,
    "distributed/tensor/_collective_utils.py": _Says.collective,
    "distributed/tensor/": _Says.work,
    "distributed/": _Says.collective,
    "nn/parallel/": _Says.collective,
    # It stands between FSDP's hooks and the model.
    "nn/modules/module.py": _Says.nothing,
    "autograd/graph.py": _Says.backward,
    **dict.fromkeys(("_dynamo/", "_functorch/", "_inductor/", "fx/", "nn/", "optim/"), _Says.work),
    "": _Says.nothing,
}


def activity_of(frame: FrameType | None) -> Activity:
    """What a thread with this innermost frame is doing."""
    for_future = False
    while frame is not None:
        says = _what_says(frame.f_code.co_filename)
        for_future |= says is _Says.future
        activity = _activity(says, frame.f_code.co_name, for_future=for_future)
        if activity is not None:
            return activity
        frame = frame.f_back
    return Activity.working


def _activity(says: _Says, function: str, *, for_future: bool) -> Activity | None:
    if says is _Says.collective or (says is _Says.backward and function == "_engine_run_backward"):
        return Activity.collective
    if says is _Says.checkpoint:
        return Activity.saving if for_future else Activity.working
    if says is _Says.failure:
        return Activity.failing
    if says is _Says.device:
        return Activity.device if torch.cuda.is_initialized() else Activity.working  # type: ignore[no-untyped-call]
    return Activity.working if says is _Says.work else None


def is_of_checkpoint(frame: FrameType | None) -> bool:
    """Whether a thread with this innermost frame is busy with a checkpoint."""
    while frame is not None:
        if _what_says(frame.f_code.co_filename) is _Says.checkpoint:
            return True
        frame = frame.f_back
    return False


def describe(frame: FrameType | None) -> str:
    """Where a thread stands: its innermost frame, and the innermost one that is the user's or ours."""
    if frame is None:
        return "no Python frame"
    inner: FrameType | None = frame
    own: FrameType | None = frame
    # The import machinery and generated code lie in no file.
    while inner is not None and inner.f_code.co_filename.startswith("<"):
        inner = inner.f_back
    while own is not None and _is_library(own.f_code.co_filename):
        own = own.f_back
    inner = inner or frame
    if own is None or own is inner:
        return _place(inner)
    return f"{_place(inner)}, called from {_place(own)}"


def is_of_torch(file: str, *, below: Sequence[str]) -> bool:
    """Whether ``file`` is one of torch's, below one of these folders."""
    path = _resolved(file) if file else ""
    return path.startswith(tuple(f"{_TORCH}{folder}" for folder in below))


def is_of_user_file(file: str) -> bool:
    """Whether ``file`` is neither this package's nor a library's."""
    return not _resolved(file).startswith(_OURS) and not _is_library(file)


def _place(frame: FrameType) -> str:
    return f"{short_file(frame.f_code.co_filename)}:{frame.f_lineno} in {frame.f_code.co_name}"


@functools.cache
def _what_says(file: str) -> _Says:
    path = _resolved(file)
    for root, rules in ((_OURS, _OF_OURS), (_TORCH, _OF_TORCH)):
        if path.startswith(root):
            inside = path.removeprefix(root)
            return next(says for prefix, says in rules.items() if inside.startswith(prefix))
    if _is_python(path):
        return _Says.future if path.startswith(_PYTHON + "concurrent/futures/") else _Says.nothing
    return _Says.work


@functools.cache
def _is_library(file: str) -> bool:
    path = _resolved(file)
    if path.startswith(_OURS):
        return False
    return _is_python(path) or path.startswith(_TORCH) or any(folder in path for folder in _PACKAGES)


def _is_python(path: str) -> bool:
    return path.startswith("<") or (path.startswith(_PYTHON) and not any(folder in path for folder in _PACKAGES))


@functools.cache
def short_file(file: str) -> str:
    """Return a path as a user would write it: from the working folder, or from the folder that it is imported from."""
    path = _resolved(file)
    here = f"{Path.cwd()}/"
    if path.startswith(here) and not _is_library(file):
        return path.removeprefix(here)
    roots = [root for entry in sys.path if path.startswith(root := f"{Path(entry).resolve()}/")]
    return path.removeprefix(max(roots, key=len, default=""))


def _resolved(file: str) -> str:
    return file if file.startswith("<") else str(Path(file).resolve())
