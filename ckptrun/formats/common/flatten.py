"""Takes a nested state apart into leaves, as torch.distributed.checkpoint (DCP) does, and says what that loses.

The rules are DCP's, so that names agree: dicts are always entered, lists only where a tensor or dict is in them or in
a list in them, tuples never. Its own function walks through lists of lists of lists again at each level, which a
hostile file can make last for ever.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ckptrun.errors import ForeignFileError

__all__ = ["FlatState", "flatten"]

_MAX_ENTRIES = 20_000_000
_MAX_DEPTH = 200

Path = tuple[str | int, ...]


@dataclass(slots=True)
class FlatState:
    """A state as leaves."""

    leaves: dict[str, tuple[Path, Any]] = field(default_factory=dict)
    """By name: the path, and the tensor or plain value."""
    renamed: list[str] = field(default_factory=list)
    """Names of dict entries whose key was no text, and is now."""
    empty: list[str] = field(default_factory=list)
    """Names of dicts without anything in them: they hold no leaf."""


def flatten(state: Mapping[Any, Any], *, source: str) -> FlatState:
    """Return the leaves of a state; ``source`` names the file in messages.

    Raises:
        ForeignFileError: Two leaves would have one name, or there are more of them than in any state.
    """
    flat = FlatState()
    lists = _Lists(source)
    waiting: list[Iterator[tuple[Path, Any]]] = [_entries((), state, flat)]
    for _ in range(_MAX_ENTRIES):
        path, value = next(waiting[-1], ((), None))
        if not path:
            waiting.pop()
            if not waiting:
                return flat
        elif isinstance(value, Mapping) or (isinstance(value, list) and lists.is_entered(value)):
            if len(path) > _MAX_DEPTH:
                raise _too_deep(source)
            waiting.append(_entries(path, value, flat))
        elif _name(path) in flat.leaves:
            raise ForeignFileError(f"{source} has two leaves that would both be named '{_name(path)}'.", folder=source)
        else:
            flat.leaves[_name(path)] = path, value
    raise ForeignFileError(f"{source} has more than {_MAX_ENTRIES} entries, which is more than is read.", folder=source)


def _name(path: Path) -> str:
    return ".".join(map(str, path))


def _too_deep(source: str) -> ForeignFileError:
    return ForeignFileError(f"{source} is nested more than {_MAX_DEPTH} levels deep.", folder=source)


def _entries(path: Path, value: Any, flat: FlatState) -> Iterator[tuple[Path, Any]]:
    if not isinstance(value, Mapping):
        yield from (((*path, index), item) for index, item in enumerate(value))
        return
    if not value and path:
        flat.empty.append(_name(path))
    for key, item in value.items():
        inner = (*path, str(key))
        if not isinstance(key, str):
            flat.renamed.append(_name(inner))
        yield inner, item


class _Lists:
    """Knows which lists are taken apart; looks at each once."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._known: dict[int, bool] = {}

    def is_entered(self, value: list[Any], depth: int = 0) -> bool:
        """Whether a list holds a tensor or dict, or a list that does."""
        if depth > _MAX_DEPTH:
            raise _too_deep(self._source)
        if id(value) not in self._known:
            # A list in itself adds nothing.
            self._known[id(value)] = False
            self._known[id(value)] = any(
                isinstance(item, Mapping | Tensor) or (isinstance(item, list) and self.is_entered(item, depth + 1))
                for item in value
            )
        return self._known[id(value)]
