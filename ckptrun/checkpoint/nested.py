"""Puts a leaf at its place in nested dicts and lists. Knows neither tensors nor files."""

from collections.abc import MutableMapping
from itertools import pairwise
from typing import Any

from ckptrun.errors import ManifestError

__all__ = ["place"]


def place(root: MutableMapping[Any, Any], path: tuple[str | int, ...], value: Any) -> None:
    """Set the element of ``root`` at ``path``; dicts and lists on the way are made, lists filled up with None.

    Raises:
        ManifestError: The path runs through something that is no dict or list.
    """
    container: Any = root
    for key, following in pairwise(path):
        container = _child(container, key, [] if isinstance(following, int) else {}, path)
    _set(container, path[-1], value, path)


def _child(container: Any, key: str | int, default: Any, path: tuple[str | int, ...]) -> Any:
    if isinstance(container, MutableMapping):
        return container.setdefault(key, default)
    _fill(container, key, path)
    if container[key] is None:
        container[key] = default
    return container[key]


def _set(container: Any, key: str | int, value: Any, path: tuple[str | int, ...]) -> None:
    if not isinstance(container, MutableMapping):
        _fill(container, key, path)
    container[key] = value


def _fill(container: Any, key: str | int, path: tuple[str | int, ...]) -> None:
    if not isinstance(container, list) or not isinstance(key, int):
        raise ManifestError(
            f"The leaf at {list(path)} cannot be placed: there is a {type(container).__name__} at {key!r}."
        )
    container.extend([None] * (key + 1 - len(container)))
