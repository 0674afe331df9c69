"""Puts a leaf at its place in nested dicts and lists. Knows neither tensors nor files."""

from collections.abc import Iterable, Mapping, MutableMapping
from itertools import pairwise
from typing import Any

from ckptrun.errors import ManifestError

__all__ = ["Places", "place"]


def place(root: MutableMapping[Any, Any], path: tuple[str | int, ...], value: Any) -> None:
    """Set the element of ``root`` at ``path``; dicts and lists on the way are made, lists filled up with None.

    Raises:
        ManifestError: The path runs through something that is no dict or list.
    """
    Places(root).put(path, value)


class Places:
    """The places in a nested state, by paths whose elements spell keys as text, as DCP flattens states.

    A dict of the state may have keys that are no text: they are found by their text.

    Args:
        root: The state; it is changed.
    """

    def __init__(self, root: MutableMapping[Any, Any]) -> None:
        self._root = root
        # By the identity of a dict; it stays valid because root holds every one of them.
        self._own_keys: dict[int, dict[str, Any]] = {}

    def put(self, path: tuple[str | int, ...], value: Any) -> None:
        """See :func:`place`."""
        container: Any = self._root
        for key, following in pairwise(path):
            container = self._child(container, key, [] if isinstance(following, int) else {}, path)
        if isinstance(container, MutableMapping):
            container[self._own_key(container, path[-1])] = value
            return
        _fill(container, path[-1], path)
        container[path[-1]] = value

    def put_in_order(self, paths: Iterable[tuple[str | int, ...]]) -> None:
        """Bring the keys of each dict below the root into the order in which ``paths`` name them.

        Keys that no path names stay where they are, before the others.
        """
        wanted: dict[tuple[str | int, ...], dict[str | int, None]] = {}
        for path in paths:
            for end in range(1, len(path)):
                wanted.setdefault(path[:end], {})[path[end]] = None
        for path, keys in wanted.items():
            container = self._at(path)
            if isinstance(container, MutableMapping):
                self._order(container, [self._own_key(container, key) for key in keys])

    def _order(self, container: MutableMapping[Any, Any], keys: list[Any]) -> None:
        present = [key for key in keys if key in container]
        named = set(present)
        if [key for key in container if key in named] != present:
            for key in present:
                container[key] = container.pop(key)

    def _at(self, path: tuple[str | int, ...]) -> Any:
        container: Any = self._root
        for key in path:
            try:
                container = container[self._own_key(container, key) if isinstance(container, Mapping) else key]
            except (KeyError, IndexError, TypeError):
                return None
        return container

    def _child(self, container: Any, key: str | int, default: Any, path: tuple[str | int, ...]) -> Any:
        if isinstance(container, MutableMapping):
            return container.setdefault(self._own_key(container, key), default)
        _fill(container, key, path)
        if container[key] is None:
            container[key] = default
        return container[key]

    def _own_key(self, container: Mapping[Any, Any], key: str | int) -> Any:
        if key in container:
            return key
        if id(container) not in self._own_keys:
            # Two keys of one text cannot be flattened, so nobody asks for them.
            self._own_keys[id(container)] = {str(own): own for own in container if not isinstance(own, str)}
        return self._own_keys[id(container)].get(str(key), key)


def _fill(container: Any, key: str | int, path: tuple[str | int, ...]) -> None:
    if not isinstance(container, list) or not isinstance(key, int):
        raise ManifestError(
            f"The leaf at {list(path)} cannot be placed: there is a {type(container).__name__} at {key!r}."
        )
    container.extend([None] * (key + 1 - len(container)))
