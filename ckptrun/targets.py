"""Finds the users' own classes by name, and tells their code. The only place that imports code the config names."""

import functools
import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptrun.errors import ConfigError

__all__ = ["call_target", "is_of_user", "load_target", "require_callable_with"]


def load_target(target: str, *, key: str) -> Callable[..., Any]:
    """Return the class or function that ``target`` names.

    Args:
        target: ``package.module.Name``, importable from the working folder, or ``path/to/file.py:Name``.
        key: The config key it comes from, for messages.

    Raises:
        ConfigError: There is no such file, module or name; says which.
    """
    place, _, name = target.rpartition(":") if ".py:" in target else target.rpartition(".")
    if not place or not name:
        raise ConfigError(f"{key}={target!r} names no class; write package.module.Name or path/to/file.py:Name.")
    module = _load_file(Path(place), key=key) if ".py:" in target else _load_module(place, key=key)
    found = getattr(module, name, None)
    if not callable(found):
        raise ConfigError(f"{key}={target!r}: {place} has no class or function {name!r}.")
    return found  # type: ignore[no-any-return]  # callable() narrows to object


def call_target(target: str, *positional: Any, key: str, **arguments: Any) -> Any:
    """Call what ``target`` names.

    Raises:
        ConfigError: It does not take these arguments; names ``<key>.args``. What it raises itself passes unchanged.
    """
    function = load_target(target, key=f"{key}._target_")
    require_callable_with(function, *positional, key=key, why=f"is called with {key}.args", **arguments)
    return function(*positional, **arguments)


def require_callable_with(function: Callable[..., Any], *positional: Any, key: str, why: str, **arguments: Any) -> None:
    """Raise ConfigError, naming ``key``, when ``function`` cannot take these arguments."""
    try:
        inspect.signature(function).bind(*positional, **arguments)
    except TypeError as error:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise ConfigError(f"{key}: {name}{inspect.signature(function)} {why}, and cannot be: {error}.") from error
    except ValueError:
        # Functions written in C may have no signature to look at.
        return


def _load_module(name: str, *, key: str) -> Any:
    # A console script, unlike python -m, does not look into the working folder.
    if str(Path.cwd()) not in sys.path and "" not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return _imported(name, key=key, what=f"the module {name!r}")


def _imported(name: str, *, key: str, what: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ConfigError(
                f"{key}: there is no module {name!r} in {Path.cwd()} or in the environment; "
                "start ckptrun where the module lies, or write path/to/file.py:Name."
            ) from error
        last = traceback.extract_tb(error.__traceback__)[-1]
        raise ConfigError(
            f"{key}: {what} cannot be imported: {type(error).__name__}: {error} (in {last.filename}, line "
            f"{last.lineno}). It must import in a Python of its own."
        ) from error


def _load_file(path: Path, *, key: str) -> Any:
    """Import a file as a script would.

    Its folder is on the path, so that it finds its neighbours, and so that other processes (loader workers) find its
    classes by name.
    """
    path = path.expanduser().resolve()
    if not path.is_file():
        raise ConfigError(f"{key}: there is no file {path}.")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    module = _imported(path.stem, key=key, what=str(path))
    if Path(str(module.__file__)).resolve() != path:
        raise ConfigError(
            f"{key}: the name of {path} is taken by {module.__file__}, which Python finds first; rename the file."
        )
    return module


def is_of_user(function: Callable[..., Any]) -> bool:
    """Whether neither torch nor this package has defined ``function``, a method or a hook."""
    while True:
        if isinstance(function, functools.partial):
            function = function.func
        elif hasattr(function, "hook"):
            # torch wraps hooks that are given the module.
            function = function.hook
        else:
            return str(getattr(function, "__module__", "")).partition(".")[0] not in ("torch", "ckptrun")
