"""What the job saves and loads, by the functions that trainers save and load with."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

from _ckptrun_probe.contents import may_be_resumed, tensors_in
from _ckptrun_probe.files import Inside
from _ckptrun_probe.places import frames_of_job
from _ckptrun_probe.record import quietly

__all__ = ["file_size", "save_hooks"]


class _Saves:
    """Notes saves and loads, the outermost of nested ones.

    Args:
        listener: Who listens in this process.
    """

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._inside = threading.local()
        self._is_inside = Inside(listener.plan.output)

    def concerns(self, place: Any) -> bool:
        """Whether a general function writes or reads a file in the job's folder, in a process that uses torch."""
        path = _path(place) if "torch" in sys.modules else None
        return path is not None and self._is_inside(path)

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
                if is_limited and hasattr(path, "flush"):
                    path.flush()
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
        in_background = threading.current_thread() is not threading.main_thread()
        self._listener.record.event("save", **facts, **self._told(what, how), background=in_background)

    def _note_in_memory(self, what: Any) -> None:
        self._listener.on_saved_in_memory(self._told(what, "torch.save in memory"))

    def _told(self, what: Any, how: str) -> dict[str, Any]:
        """What is said of what is saved: the digests of its tensors also say which step it is of."""
        tensors = list(tensors_in(what))
        return {"resumable": may_be_resumed(what, how, tensors), "content": self._listener.digests(tensors)}

    def _done(self, result: Any, path: str, how: str) -> None:
        """Say when the file is there: now, or when a save in the background is over."""
        future = getattr(result, "upload_completion", result)
        listener, step = self._listener, self._listener.taken

        def done(ended: Any = None) -> None:
            failed = ended is not None and ended.exception() is not None
            size = file_size(path, listener.rank())
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


def file_size(path: str, rank: int) -> int | None:
    """Of a file; of a folder that ranks write to, that of the largest file of this rank; in bytes."""
    if not os.path.isdir(path):  # noqa: PTH112
        return os.path.getsize(path) if os.path.isfile(path) else None  # noqa: PTH113, PTH202
    files = [entry for entry in os.scandir(path) if entry.is_file()]
    own = [entry for entry in files if entry.name.startswith(f"__{rank}_")]
    return max((entry.stat().st_size for entry in own or files), default=None)


def _path(place: Any) -> str | None:
    """The absolute path of what is written or read; None where that is not known."""
    if not isinstance(place, (str, os.PathLike)):
        place = _opened(place)
    return None if place is None else os.path.abspath(os.fspath(place))  # noqa: PTH100


def _opened(file: Any) -> str | None:
    """The path of an open file; one that was opened by its number has no name but that."""
    name = getattr(file, "name", None)
    if isinstance(name, str):
        return name
    try:
        path = os.readlink(f"/proc/self/fd/{file.fileno()}")  # noqa: PTH115
    except Exception:  # noqa: BLE001  # what is no file says so in its own way
        return None
    return path if os.path.isfile(path) else None  # noqa: PTH113


def save_hooks(listener: Any) -> dict[str, Callable[[ModuleType], None]]:
    """What is to be done when a module that saves is there."""
    saves = _Saves(listener)
    return {
        "torch.serialization": functools.partial(_hook_torch, saves),
        "safetensors": functools.partial(_hook_safe_open, saves),
        "safetensors.torch": functools.partial(_hook_safetensors, saves),
        "numpy": functools.partial(_hook_numpy, saves),
        "pickle": functools.partial(_hook_pickle, saves),
        "torch.distributed.checkpoint.state_dict_saver": functools.partial(_hook_dcp_saver, saves),
        "torch.distributed.checkpoint.state_dict_loader": functools.partial(_hook_dcp_loader, saves),
        "torch_checkpointing.checkpoint_manager": functools.partial(_hook_torch_checkpointing, saves),
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


def _hook_safe_open(saves: _Saves, module: ModuleType) -> None:
    original = module.safe_open

    @functools.wraps(original)
    def safe_open(filename: Any, *arguments: Any, **options: Any) -> Any:
        return saves.load(filename, "safetensors.safe_open", lambda: original(filename, *arguments, **options))

    module.safe_open = safe_open  # type: ignore[attr-defined]


def _hook_numpy(saves: _Saves, module: ModuleType) -> None:
    """What is in the folder of the job; a process without torch has nothing to do with it."""
    load = module.load

    def wrapped(name: str) -> Callable[..., Any]:
        original = getattr(module, name)

        @functools.wraps(original)
        def saving(file: Any, *arrays: Any, **named: Any) -> Any:
            def call() -> Any:
                return original(file, *arrays, **named)

            place = f"{file}.npz" if isinstance(file, (str, os.PathLike)) and not str(file).endswith(".npz") else file
            what = {**{f"arr_{index}": one for index, one in enumerate(arrays)}, **named}
            return saves.save(what, place, f"numpy.{name}", call) if saves.concerns(place) else call()

        return saving

    @functools.wraps(load)
    def loading(file: Any, *arguments: Any, **options: Any) -> Any:
        def call() -> Any:
            return load(file, *arguments, **options)

        return saves.load(file, "numpy.load", call) if saves.concerns(file) else call()

    for name in ("savez", "savez_compressed"):
        setattr(module, name, wrapped(name))
    module.load = loading  # type: ignore[attr-defined]


def _hook_pickle(saves: _Saves, module: ModuleType) -> None:
    """The same of what is pickled."""
    dump, load = module.dump, module.load

    @functools.wraps(dump)
    def dumping(obj: Any, file: Any, *arguments: Any, **options: Any) -> Any:
        def call() -> Any:
            return dump(obj, file, *arguments, **options)

        return saves.save(obj, file, "pickle.dump", call) if saves.concerns(file) else call()

    @functools.wraps(load)
    def loading(file: Any, *arguments: Any, **options: Any) -> Any:
        def call() -> Any:
            return load(file, *arguments, **options)

        return saves.load(file, "pickle.load", call) if saves.concerns(file) else call()

    module.dump, module.load = dumping, loading  # type: ignore[attr-defined]


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


def _hook_torch_checkpointing(saves: _Saves, module: ModuleType) -> None:
    save, load = module.CheckpointManager.save, module.CheckpointManager.load

    @functools.wraps(save)
    def saving(manager: Any, checkpoint_id: Any, checkpoint: Any) -> Any:
        how = "torch_checkpointing.save"
        return saves.save(checkpoint, checkpoint_id, how, lambda: save(manager, checkpoint_id, checkpoint))

    @functools.wraps(load)
    def loading(manager: Any, checkpoint_id: Any, *arguments: Any, **options: Any) -> Any:
        how = "torch_checkpointing.load"
        return saves.load(checkpoint_id, how, lambda: load(manager, checkpoint_id, *arguments, **options))

    module.CheckpointManager.save, module.CheckpointManager.load = saving, loading  # type: ignore[attr-defined]


def _dcp_path(options: dict[str, Any], storage: str) -> Any:
    place = options.get("checkpoint_id")
    if place is None:
        place = getattr(options.get(storage), "path", None)
    return place
