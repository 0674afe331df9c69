"""Every operation of one step, where two runs of a job are compared by it: what it was given, and what came out.

From the first call of a module, or the last batch before it, to the update. Only starts that are made for it do this.
"""

from __future__ import annotations

import hashlib
import sys
from types import ModuleType
from typing import Any

from _ckptrun_probe.places import frames_of_job
from _ckptrun_probe.record import quietly

__all__ = ["Watch"]

_MOST = 20_000


class Watch:
    """Watches one step of this process.

    Args:
        listener: Who listens in it.
    """

    def __init__(self, listener: Any) -> None:
        self._listener = listener
        self._mode: Any = None
        self._seen: list[list[str]] = []

    @property
    def _is_due(self) -> bool:
        return bool(self._listener.taken + 1 == self._listener.plan.watched_step)

    def hook_modules(self, module: ModuleType) -> None:
        """``torch.nn.modules.module`` is there."""
        if self._listener.plan.watched_step is not None:
            module.register_module_forward_pre_hook(self._on_call)

    def _on_call(self, *_: Any) -> None:
        if self._mode is None and self._is_due:
            quietly(self._listener.record, "a watched step", self._begin)

    def on_batch(self) -> None:
        """What came before a batch was not about it."""
        self._seen.clear()

    def _begin(self) -> None:
        from torch.utils._python_dispatch import TorchDispatchMode

        watch = self

        class Mode(TorchDispatchMode):
            def __torch_dispatch__(
                self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
            ) -> Any:
                given = watch.digest((args, kwargs))
                result = func(*args, **(kwargs or {}))
                watch.note(str(func), given, result)
                return result

        mode = Mode()
        mode.__enter__()
        self._mode = mode

    def digest(self, value: Any) -> str:
        """Of all tensors and numbers in it; empty where that cannot be said."""
        return quietly(self._listener.record, "an operation", _digest, value) or ""

    def note(self, name: str, given: str, result: Any) -> None:
        """An operation has come to its end."""
        if len(self._seen) < _MOST:
            frames = frames_of_job()
            # Memory that nobody has written to yet holds anything.
            made = "" if "empty" in name else self.digest(result)
            self._seen.append([name, given, made, frames[0] if frames else ""])

    def end(self) -> None:
        """The step is computed: tell it."""
        if self._mode is None:
            return
        mode, self._mode = self._mode, None
        mode.__exit__(*sys.exc_info())
        seen, self._seen = self._seen, []
        self._listener.record.event("operations", rank=self._listener.rank(), seen=seen)


def _digest(value: Any) -> str:
    parts: list[str] = []
    _collect(value, parts)
    return hashlib.blake2b(" ".join(parts).encode(), digest_size=8).hexdigest()


def _collect(value: Any, parts: list[str]) -> None:
    import torch

    from _ckptrun_probe.digest import digest_of

    if isinstance(value, torch.Tensor):
        parts.append(digest_of(value))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _collect(inner, parts)
    elif isinstance(value, dict):
        for name in sorted(value):
            parts.append(str(name))
            _collect(value[name], parts)
    elif value is None or isinstance(value, (bool, int, float, complex, str, torch.dtype, torch.device)):
        parts.append(repr(value))
    else:
        # A generator, a group of ranks: what it is, and not where it lies.
        parts.append(type(value).__name__)
