"""Reads one JSON object field by field, so that a wrong one is named: ``leaves[3].chunks[0].begin``.

Must not know what the fields mean.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from ckptrun.errors import ManifestError

__all__ = ["Fields"]

# A list is rebuilt by its indices, so a huge one would cost memory for nothing.
_MAX_INDEX = 2**20

T = TypeVar("T")


class Fields:
    """A JSON object at a known place in a document.

    Args:
        value: What the parser gave; must be an object.
        place: Where it stands, for messages; empty for the document itself.
        source: The file, for messages.

    Raises:
        ManifestError: From every method: a field is missing or is not what was asked for.
    """

    def __init__(self, value: Any, *, place: str, source: str) -> None:
        self._source = source
        self._place = place
        if not isinstance(value, dict):
            raise self.error("", "must be an object", value)
        self._values: dict[str, Any] = value

    def error(self, name: str, what: str, found: Any) -> ManifestError:
        """Return the error for field ``name``; ``found`` is shown, cut to a line."""
        field = f"{self._place}.{name}".strip(".") or "the document"
        shown = repr(found)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ManifestError(f"{self._source}: field '{field}' {what}, got {shown}.", folder=self._source)

    def has(self, name: str) -> bool:
        """Whether the field is there."""
        return name in self._values

    def any(self, name: str) -> Any:
        """Return a field as it is."""
        if name not in self._values:
            raise ManifestError(f"{self._source}: field '{self._place}.{name}' is missing.", folder=self._source)
        return self._values[name]

    def text(self, name: str, is_valid: Callable[[str], bool] = lambda _: True) -> str:
        """Return a string that ``is_valid`` accepts."""
        value = self.any(name)
        if not isinstance(value, str) or not is_valid(value):
            raise self.error(name, "must be a valid string", value)
        return value

    def integer(self, name: str, minimum: int = 0) -> int:
        """Return an integer of at least ``minimum`` that fits 63 bits."""
        value = self.any(name)
        if not _is_integer(value, minimum):
            raise self.error(name, f"must be an integer of at least {minimum}", value)
        return int(value)

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of integers of at least 0."""
        return tuple(self._list(name, lambda item: _is_integer(item, 0), "non-negative integers"))

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        return tuple(self._list(name, lambda item: isinstance(item, str), "strings"))

    def path(self, name: str) -> tuple[str | int, ...]:
        """Return a list of strings and list indices that is not empty."""

        def is_element(item: Any) -> bool:
            return isinstance(item, str) or (_is_integer(item, 0) and item < _MAX_INDEX)

        path = tuple(self._list(name, is_element, "keys and list indices"))
        if not path:
            raise self.error(name, "must not be empty", [])
        return path

    def objects(self, name: str) -> Iterator["Fields"]:
        """Yield each object of a list."""
        for index, item in enumerate(self._list(name, lambda _: True, "objects")):
            yield Fields(item, place=f"{self._place}.{name}[{index}]".strip("."), source=self._source)

    def lists_of_texts(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Return a list of lists of strings."""

        def is_texts(item: Any) -> bool:
            return isinstance(item, list) and all(isinstance(text, str) for text in item)

        return tuple(tuple(item) for item in self._list(name, is_texts, "lists of strings"))

    def _list(self, name: str, is_valid: Callable[[Any], bool], what: str) -> list[Any]:
        value = self.any(name)
        if not isinstance(value, list) or not all(is_valid(item) for item in value):
            raise self.error(name, f"must be a list of {what}", value)
        return value


def _is_integer(value: Any, minimum: int) -> bool:
    # bool is an int in Python, and true is not a number in JSON.
    return type(value) is int and minimum <= value < 2**63
