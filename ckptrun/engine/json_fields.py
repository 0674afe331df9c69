"""Reads one JSON object field by field, so that a wrong one is named: ``leaves[3].chunks[0].begin``.

Must not know what the fields mean.
"""

from collections.abc import Callable, Iterator
from typing import Any

from ckptrun.errors import ManifestError

__all__ = ["MAX_INDEX", "Fields"]

MAX_INDEX = 2**20
"""Indices into lists are below this: a list is rebuilt by them, so a huge one would cost memory for nothing."""

_LIMIT = 2**63
_MISSING = object()


class Fields:
    """A JSON object at a known place in a document. Made once per leaf and chunk, so it is lean.

    Args:
        value: What the parser gave; must be an object.
        source: The file, for messages.
        parent: The object that it is in; None for the document itself.
        name: The field of the parent.
        index: The place in that field's list.

    Raises:
        ManifestError: From every method: a field is missing or is not what was asked for.
    """

    __slots__ = ("_index", "_name", "_parent", "_source", "_values")

    def __init__(
        self, value: Any, *, source: str, parent: "Fields | None" = None, name: str = "", index: int = 0
    ) -> None:
        self._source = source
        self._parent = parent
        self._name = name
        self._index = index
        if type(value) is not dict:
            raise self.error("", "must be an object", value)
        self._values: dict[str, Any] = value

    @property
    def _place(self) -> str:
        if self._parent is None:
            return self._name
        return f"{self._parent._place}.{self._name}[{self._index}]".strip(".")

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
        value = self._values.get(name, _MISSING)
        if value is _MISSING:
            place = f"{self._place}.{name}".strip(".")
            raise ManifestError(f"{self._source}: field '{place}' is missing.", folder=self._source)
        return value

    def text(self, name: str, is_valid: Callable[[str], bool] | None = None) -> str:
        """Return a string that ``is_valid`` accepts."""
        value = self._values.get(name)
        if type(value) is not str or (is_valid is not None and not is_valid(value)):
            raise self.error(name, "must be a valid string", self.any(name))
        return value

    def integer(self, name: str, minimum: int = 0) -> int:
        """Return an integer of at least ``minimum`` that fits 63 bits."""
        value = self._values.get(name)
        # bool is an int in Python, and true is not a number in JSON.
        if type(value) is not int or not minimum <= value < _LIMIT:
            raise self.error(name, f"must be an integer of at least {minimum}", self.any(name))
        return value

    def integers(self, name: str) -> tuple[int, ...]:
        """Return a list of integers of at least 0."""
        value = self._list(name, "non-negative integers")
        for item in value:
            if type(item) is not int or not 0 <= item < _LIMIT:
                raise self.error(name, "must be a list of non-negative integers", value)
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self._list(name, "strings")
        for item in value:
            if type(item) is not str:
                raise self.error(name, "must be a list of strings", value)
        return tuple(value)

    def path(self, name: str) -> tuple[str | int, ...]:
        """Return a list of strings and list indices that is not empty."""
        value = self._list(name, "keys and list indices")
        for item in value:
            if type(item) is not str and (type(item) is not int or not 0 <= item < MAX_INDEX):
                raise self.error(name, "must be a list of keys and list indices", value)
        if not value:
            raise self.error(name, "must not be empty", [])
        return tuple(value)

    def objects(self, name: str) -> Iterator["Fields"]:
        """Yield each object of a list."""
        for index, item in enumerate(self._list(name, "objects")):
            yield Fields(item, source=self._source, parent=self, name=name, index=index)

    def lists_of_texts(self, name: str) -> tuple[tuple[str, ...], ...]:
        """Return a list of lists of strings."""
        value = self._list(name, "lists of strings")
        for item in value:
            if type(item) is not list or not all(type(text) is str for text in item):
                raise self.error(name, "must be a list of lists of strings", value)
        return tuple(tuple(item) for item in value)

    def _list(self, name: str, what: str) -> list[Any]:
        value = self._values.get(name)
        if type(value) is not list:
            raise self.error(name, f"must be a list of {what}", self.any(name))
        return value
