"""What of a source is converted: which leaves, under which names, as which dtypes; and what a writer tells of it.

Reads nothing before it is asked. Must not know the format that is written.
"""

import errno
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ckptrun.engine.dtypes import item_bytes
from ckptrun.engine.shard_file import PlannedChunk
from ckptrun.errors import ConfigError
from ckptrun.formats.common.convert_options import DTYPES
from ckptrun.formats.common.interface import Origin, Source, SourceLeaf, row_shape
from ckptrun.formats.common.numbered_optimizer import NumberedOptimizer
from ckptrun.text import joined

__all__ = ["Advance", "Item", "Rounding", "Selection", "Written", "select"]

# Those of 8 bits and less are packed numbers that have a scale in another leaf: no number of their own to convert.
_CONVERTED = ("float64", "float32", "float16", "bfloat16")
_SLAB_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A leaf as it is written."""

    leaf: SourceLeaf
    name: str
    path: tuple[str | int, ...]
    dtype: str | None

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor rather than a plain value."""
        return self.dtype is not None

    @property
    def is_converted(self) -> bool:
        """Whether its dtype is another than in the source."""
        return self.dtype != self.leaf.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the full tensor."""
        return self.leaf.shape or ()

    @property
    def bytes(self) -> int:
        """Of all elements as they are written; 0 for a plain value."""
        return 0 if self.dtype is None else math.prod(self.shape) * item_bytes(self.dtype)

    def as_chunk(self) -> PlannedChunk:
        """Return the whole tensor as one chunk of a file."""
        offsets = (0,) * len(self.shape)
        return PlannedChunk(leaf=self.name, dtype=str(self.dtype), shape=self.shape, offsets=offsets, sizes=self.shape)

    def slabs(self) -> Iterator[tuple[int, int]]:
        """Yield first row and number of rows, such that a slab is of bounded size unless a single row is larger."""
        if self.dtype is None or not self.leaf.rows:
            return
        row = math.prod(row_shape(self.shape)[1:]) * max(item_bytes(self.dtype), item_bytes(str(self.leaf.dtype)))
        count = max(1, _SLAB_BYTES // max(1, row))
        for first in range(0, self.leaf.rows, count):
            yield first, min(count, self.leaf.rows - first)


Advance = Callable[[int], None]
"""Told how many more bytes are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A checkpoint that lies on storage, not yet under its name."""

    files: int
    bytes: int
    """Of all files."""
    left_out: tuple[Item, ...]
    """What the format cannot hold."""
    notes: tuple[str, ...] = ()
    """What whoever loads it should know."""
    open: Callable[[], Source]
    """Opens it, for comparing."""


@dataclass(slots=True)
class Rounding:
    """What a conversion to fewer bits has made of numbers beyond the last digits."""

    infinite: int = 0
    """Numbers that were finite and are not any more."""
    zero: int = 0
    """Numbers that were not zero and are."""

    def add(self, before: Tensor, after: Tensor) -> None:
        """Count what happened to one slab."""
        self.infinite += int((after.isinf() & ~before.isinf()).sum())
        self.zero += int(((after == 0) & (before != 0)).sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The leaves that are written, in the order of the source."""

    source: Source
    items: tuple[Item, ...]
    shared: tuple[tuple[str, ...], ...]
    """Names of items that are the same memory."""
    origin: Origin
    optimizers: tuple[NumberedOptimizer, ...] = ()
    """Those whose leaves stand where torch's own optimizers want them."""
    rounding: Rounding = field(default_factory=Rounding)
    """Filled while tensors are read with ``rows(..., is_counted=True)``."""

    @property
    def tensors(self) -> tuple[Item, ...]:
        """Those that are tensors."""
        return tuple(item for item in self.items if item.is_tensor)

    @property
    def values(self) -> tuple[Item, ...]:
        """Those that are plain values."""
        return tuple(item for item in self.items if not item.is_tensor)

    def rows(self, item: Item, first: int, count: int, *, is_counted: bool = False) -> Tensor:
        """Return a slab as it is written; see ``Source.read_rows``. ``is_counted``: add to ``rounding``."""
        found = self.source.read_rows(item.leaf.name, first, count)
        if not item.is_converted:
            return found
        converted = found.to(getattr(torch, str(item.dtype)))
        if is_counted:
            self.rounding.add(found, converted)
        return converted

    def whole(self, item: Item) -> Tensor:
        """Return a full tensor with memory of its own, read slab by slab.

        Raises:
            OSError: There is no memory for it.
        """
        try:
            tensor = torch.empty(item.shape, dtype=getattr(torch, str(item.dtype)))
        except RuntimeError as error:
            raise OSError(
                errno.ENOMEM, f"{os.strerror(errno.ENOMEM)} for leaf '{item.name}', {item.bytes} bytes"
            ) from (error)
        rows = tensor if item.shape else tensor[None]
        for first, count in item.slabs():
            rows[first : first + count].copy_(self.rows(item, first, count, is_counted=True))
        return tensor


def select(source: Source, *, only: str | None, keeps_prefix: bool, dtype: str | None) -> Selection:
    """Choose leaves.

    Args:
        source: Stays open as long as the result is used.
        only: The name of a leaf, or of what holds leaves; None for all.
        keeps_prefix: Whether names keep ``only`` at their beginning.
        dtype: One of ``convert_options.DTYPES``, which tensors of ordinary floats are converted to.

    Raises:
        ConfigError: Nothing is called ``only``.
    """
    items = [
        _item(leaf, None if only is None or keeps_prefix else only, None if dtype is None else DTYPES[dtype])
        for leaf in source.leaves.values()
        if only is None or leaf.name == only or leaf.name.startswith(f"{only}.")
    ]
    if not items:
        top = list(dict.fromkeys(str(leaf.path[0]) for leaf in source.leaves.values()))
        what = f"and nothing under that name; at the top there are: {joined(top, 20)}" if top else "and no leaf at all"
        wanted = "no leaf at all" if only is None else f"no leaf '{only}' {what}"
        raise ConfigError(f"{source.address} holds {wanted}.")
    by_source = {item.leaf.name: item.name for item in items}
    groups = (tuple(by_source[name] for name in group if name in by_source) for group in source.shared)
    return Selection(
        source=source,
        items=tuple(items),
        shared=tuple(group for group in groups if len(group) > 1),
        origin=source.origin,
    )


def _item(leaf: SourceLeaf, prefix: str | None, dtype: str | None) -> Item:
    name, path = (leaf.name, leaf.path) if prefix is None else _stripped(leaf, prefix)
    converted = dtype if dtype is not None and leaf.dtype in _CONVERTED else leaf.dtype
    return Item(leaf=leaf, name=name, path=path, dtype=converted)


def _stripped(leaf: SourceLeaf, prefix: str) -> tuple[str, tuple[str | int, ...]]:
    """Name and path without what stands before the last element of ``prefix``, and without that."""
    name = leaf.name[len(prefix) + 1 :] or leaf.name.rpartition(".")[2]
    path = leaf.path
    left = prefix
    while left and len(path) > 1:
        element = str(path[0])
        if left != element and not left.startswith(f"{element}."):
            break
        left, path = left[len(element) + 1 :], path[1:]
    if left and isinstance(path[0], str) and path[0].startswith(f"{left}."):
        # The prefix ends inside a key, as in {"model": {"blocks.0.weight": ...}}.
        left, path = "", (path[0][len(left) + 1 :], *path[1:])
    return (name, path) if not left and _name(path) == name else (name, (name,))


def _name(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))
