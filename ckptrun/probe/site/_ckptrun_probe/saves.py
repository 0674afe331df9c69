"""What the job saves and loads, by the functions that trainers save and load with."""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from _ckptrun_probe.places import frames_of_job
from _ckptrun_probe.record import quietly

__all__ = ["save_hooks"]

_DEEPEST = 6


class _Saves:
    """Notes saves and loads, the outermost of nested ones.

    Args:
        listener: Who listens in this process.
    """

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._inside = threading.local()

    def save(self, what: Any, path: Any, how: str, call: Callable[[], Any]) -> Any:
        """Call, and note before and after what is saved where."""
        name = _path(path)
        listener = self._listener
        if getattr(self._inside, "is", False):
            return call()
        if name is None:
            result = call()
            quietly(listener.record, "a save in memory", self._note_in_memory, what)
            return result
        self._inside.__dict__["is"] = True
        try:
            listener.reached("at_request", begins=False)
            quietly(listener.record, "a save", self._note, what, name, how)
            is_limited = bool(listener.plan.faults) and listener.strikes.limit(
                name, step=listener.step, rank=listener.rank()
            )
            try:
                result = call()
            finally:
                if is_limited:
                    listener.strikes.unlimit()
            self._done(result, name, how)
            return result
        finally:
            self._inside.__dict__["is"] = False

    def _note(self, what: Any, path: str, how: str) -> None:
        if self._listener.plan.tells_places:
            self._listener.record.event("place", names=[path], frames=frames_of_job())
        facts = {"path": path, "how": how, "step": self._listener.taken, "rank": self._listener.rank()}
        self._listener.record.event("save", **facts, resumable=_may_be_resumed(what, how), content=_content(what))

    def _note_in_memory(self, what: Any) -> None:
        how = "torch.save in memory"
        self._listener.on_saved_in_memory({"resumable": _may_be_resumed(what, how), "content": _content(what)})

    def _done(self, result: Any, path: str, how: str) -> None:
        """Say when the file is there: now, or when a save in the background is over."""
        future = getattr(result, "upload_completion", result)
        listener, step = self._listener, self._listener.taken

        def done(ended: Any = None) -> None:
            failed = ended is not None and ended.exception() is not None
            size = os.path.getsize(path) if os.path.isfile(path) else None  # noqa: PTH113, PTH202
            listener.record.event(
                "saved", path=path, how=how, step=step, rank=listener.rank(), size=size, failed=failed
            )

        if hasattr(future, "add_done_callback"):
            future.add_done_callback(lambda ended: quietly(listener.record, "the end of a save", done, ended))
        else:
            quietly(listener.record, "the end of a save", done)

    def load(self, path: Any, how: str, call: Callable[[], Any]) -> Any:
        """Call, and note what is loaded from where."""
        name = _path(path)
        result = call()
        if name is not None and not getattr(self._inside, "is", False):
            listener = self._listener
            event = functools.partial(listener.record.event, "load", path=name, how=how, step=listener.taken)
            quietly(listener.record, "a load", lambda: event(rank=listener.rank()))
            listener.strikes.at("loading", step=listener.step, rank=listener.rank())
        return result


def _path(place: Any) -> str | None:
    """The absolute path of what is written or read; None where that is not known."""
    if hasattr(place, "name") and not isinstance(place, (str, os.PathLike)):
        place = place.name
    if isinstance(place, (str, os.PathLike)):
        return os.path.abspath(os.fspath(place))  # noqa: PTH100
    return None


def _may_be_resumed(what: Any, how: str) -> bool:
    """Whether it may be more than weights alone (a best model, an export), which are nothing to go on from."""
    import torch

    is_flat = isinstance(what, dict) and all(isinstance(value, torch.Tensor) for value in what.values())
    if how.startswith("safetensors"):
        return False
    return not is_flat or how.startswith("dcp")


def _content(what: Any) -> str:
    """The digests of all tensors in it, one after the other: they say which step it is of."""
    from _ckptrun_probe.digest import digests_of

    tensors: list[Any] = []
    _collect(what, tensors, 0)
    return digests_of(tensors) if tensors else ""


def _collect(value: Any, tensors: list[Any], depth: int) -> None:
    import torch

    if depth > _DEEPEST:
        return
    if isinstance(value, torch.Tensor):
        tensors.append(value)
    elif isinstance(value, dict):
        for inner in value.values():
            _collect(inner, tensors, depth + 1)
    elif isinstance(value, (list, tuple)):
        for inner in value[:10_000]:
            _collect(inner, tensors, depth + 1)
    elif hasattr(value, "state_dict") and callable(value.state_dict) and hasattr(value, "parameters"):
        # A whole module.
        tensors.extend(value.parameters())


def save_hooks(listener: Any) -> dict[str, Callable[[ModuleType], None]]:
    """What is to be done when a module that saves is there."""
    saves = _Saves(listener)
    return {
        "torch.serialization": functools.partial(_hook_torch, saves),
        "safetensors.torch": functools.partial(_hook_safetensors, saves),
        "torch.distributed.checkpoint.state_dict_saver": functools.partial(_hook_dcp_saver, saves),
        "torch.distributed.checkpoint.state_dict_loader": functools.partial(_hook_dcp_loader, saves),
    }


def _hook_torch(saves: _Saves, module: ModuleType) -> None:
    save, load = module.save, module.load

    @functools.wraps(save)
    def saving(obj: Any, f: Any, *arguments: Any, **options: Any) -> Any:
        return saves.save(obj, f, "torch.save", lambda: save(obj, f, *arguments, **options))

    @functools.wraps(load)
    def loading(f: Any, *arguments: Any, **options: Any) -> Any:
        return saves.load(f, "torch.load", lambda: load(f, *arguments, **options))

    module.save, module.load = saving, loading  # type: ignore[attr-defined]


def _hook_safetensors(saves: _Saves, module: ModuleType) -> None:
    save, load = module.save_file, module.load_file

    @functools.wraps(save)
    def saving(tensors: Any, filename: Any, *arguments: Any, **options: Any) -> Any:
        how = "safetensors.save_file"
        return saves.save(tensors, filename, how, lambda: save(tensors, filename, *arguments, **options))

    @functools.wraps(load)
    def loading(filename: Any, *arguments: Any, **options: Any) -> Any:
        return saves.load(filename, "safetensors.load_file", lambda: load(filename, *arguments, **options))

    module.save_file, module.load_file = saving, loading  # type: ignore[attr-defined]


def _hook_dcp_saver(saves: _Saves, module: ModuleType) -> None:
    for name in ("save", "async_save"):
        setattr(module, name, _wrapped_dcp(saves, getattr(module, name), f"dcp.{name}"))


def _hook_dcp_loader(saves: _Saves, module: ModuleType) -> None:
    load = module.load

    @functools.wraps(load)
    def loading(state_dict: Any, *arguments: Any, **options: Any) -> Any:
        path = _dcp_path(options, "storage_reader")
        return saves.load(path, "dcp.load", lambda: load(state_dict, *arguments, **options))

    module.load = loading  # type: ignore[attr-defined]


def _wrapped_dcp(saves: _Saves, original: Callable[..., Any], how: str) -> Callable[..., Any]:
    @functools.wraps(original)
    def saving(state_dict: Any, *arguments: Any, **options: Any) -> Any:
        path = _dcp_path(options, "storage_writer")
        return saves.save(state_dict, path, how, lambda: original(state_dict, *arguments, **options))

    return saving


def _dcp_path(options: dict[str, Any], storage: str) -> Any:
    place = options.get("checkpoint_id")
    if place is None:
        place = getattr(options.get(storage), "path", None)
    return place
