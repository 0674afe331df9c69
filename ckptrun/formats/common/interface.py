"""What every reader of a checkpoint gives, whatever its format: leaves, and tensors slab by slab."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor

from ckptrun.embedded import embed
from ckptrun.engine.dtypes import item_bytes
from ckptrun.errors import InternalError, StateMismatchError

__all__ = ["Origin", "Source", "SourceLeaf", "check_rows", "row_shape"]


def _no_value() -> Any:
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceLeaf:
    """One tensor or plain value of a checkpoint of any format."""

    name: str
    """Its path, joined by dots, as ``torch.distributed.checkpoint`` (DCP) flattens states."""
    path: tuple[str | int, ...]
    """Its place in the nested state; an int is an index into a list."""
    dtype: str | None
    """As torch names it, without ``torch.``; None for a plain value."""
    shape: tuple[int, ...] | None
    """Of the full tensor; None for a plain value."""
    load: Callable[[], Any] = _no_value
    """Gives the plain value. Called once, when it is first asked for: it may be what cannot be read."""
    digest: str | None = None
    """Of its bits, where the checkpoint has one."""

    @property
    def is_tensor(self) -> bool:
        """Whether it is a tensor rather than a plain value."""
        return self.dtype is not None

    @functools.cached_property
    def value(self) -> Any:
        """The plain value; None for a tensor (``dtype`` tells a tensor from the plain value None).

        Raises:
            CheckpointDamagedError: It cannot be trusted.
            UnsupportedLeafError: It is made of objects that only unpickling could make.
        """
        # Tensors that a tuple holds are no leaves; they are compared as what a manifest says of them.
        return embed(self.load(), name=self.name)

    @property
    def bytes(self) -> int:
        """Of all elements; 0 for a plain value."""
        return 0 if self.dtype is None else math.prod(self.shape or ()) * item_bytes(self.dtype)

    @property
    def rows(self) -> int:
        """How many slabs of one there are along dim 0; a 0-dim tensor has one."""
        return row_shape(self.shape or ())[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a checkpoint says beside its leaves; other formats than ckptrun's say nothing."""

    run: Mapping[str, Any] = field(default_factory=dict)
    world_size: int = 1


class Source(Protocol):
    """A checkpoint that is being read. Used by one thread; a context manager, which closes what it has opened.

    Everything that a file can get wrong is an error of the package's own kind: nothing that a file names is imported or
    called, and nothing is allocated that the length of the files does not cover.
    """

    format: str
    """``ckptrun``, ``dcp``, ``torch`` or ``safetensors``."""
    address: str
    """As a user would write it."""
    leaves: Mapping[str, SourceLeaf]
    """In the order of the checkpoint."""
    shared: tuple[tuple[str, ...], ...]
    """Names of leaves that are the same memory (tied weights), where the format tells."""
    origin: Origin
    remarks: tuple[str, ...]
    """What was lost on the way to leaves, for people: keys that were no text, dicts without anything in them."""

    def read_rows(self, name: str, first: int, count: int) -> Tensor:
        """Return rows ``first`` to ``first + count`` along dim 0 of a tensor leaf, row-major, in host memory.

        The shape is ``(count, *shape[1:])``; a 0-dim tensor is one row, of shape ``(1,)``.

        Raises:
            CheckpointDamagedError: A file is missing or damaged.
            StateMismatchError: Not all of the leaf is in the checkpoint, or this torch does not have its dtype.
        """

    def __enter__(self) -> Self:
        """Return itself."""

    def __exit__(self, *_: object) -> None:
        """Close the files."""


def row_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that slabs are cut from: that of the tensor, or ``(1,)`` for a 0-dim one."""
    return shape or (1,)


def check_rows(leaf: SourceLeaf, first: int, count: int) -> torch.dtype:
    """Check that a slab lies in a leaf; return its dtype.

    Raises:
        StateMismatchError: This torch does not have it.
    """
    if leaf.dtype is None or not 0 <= first <= first + count <= leaf.rows:
        raise InternalError(f"Leaf '{leaf.name}' of shape {leaf.shape} has no rows {first} to {first + count}.")
    dtype = getattr(torch, leaf.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise StateMismatchError(
            f"Leaf '{leaf.name}' has dtype {leaf.dtype}, which torch {torch.__version__} does not have.",
            leaves=[leaf.name],
        )
    return dtype
