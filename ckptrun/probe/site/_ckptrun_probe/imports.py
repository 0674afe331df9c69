"""Does something to a module right after the job has imported it, and to none that it does not import."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["AfterImport"]


class AfterImport(importlib.abc.MetaPathFinder):
    """Goes first on ``sys.meta_path``; finds what the others find.

    Args:
        calls: Name of a module -> what is called with it once it is complete.
    """

    def __init__(self, calls: dict[str, Callable[[ModuleType], None]]) -> None:
        self._calls = calls
        self._looking: set[str] = set()

    def install(self) -> None:
        """Begin; what is imported already is done at once."""
        sys.meta_path.insert(0, self)
        for name in [name for name in self._calls if name in sys.modules]:
            self._calls.pop(name)(sys.modules[name])

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """See ``importlib.abc.MetaPathFinder``."""
        if name not in self._calls or name in self._looking:
            return None
        self._looking.add(name)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self._looking.discard(name)
        if spec is None or spec.loader is None:
            return spec
        spec.loader = _Loader(spec.loader, self._calls)  # type: ignore[assignment]
        return spec


class _Loader:
    """A loader that calls somebody when it is done; in all else it is the one that it was made of."""

    def __init__(self, loader: Any, calls: dict[str, Callable[[ModuleType], None]]) -> None:
        self._loader = loader
        self._calls = calls

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """See ``importlib.abc.Loader``."""
        created: ModuleType | None = self._loader.create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """See ``importlib.abc.Loader``."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        call = self._calls.pop(module.__name__, None)
        if call is not None:
            call(module)
