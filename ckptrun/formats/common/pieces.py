"""Puts slabs of rows together from the boxes in which other formats keep a tensor. Must not know files."""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ckptrun.engine.geometry import overlap
from ckptrun.errors import ForeignFileError, StateMismatchError
from ckptrun.formats.common.interface import SourceLeaf, check_rows, row_shape

__all__ = ["Piece", "check_boxes", "read_rows"]

# So that the bytes of any dtype, and the strides of a tensor without elements, fit 63 bits.
_MOST_ELEMENTS = 2**58


class Piece(Protocol):
    """A box of a tensor that lies in one place."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    def read_rows(self, first: int, count: int) -> Tensor:
        """Return rows of the box along dim 0, as :meth:`~ckptrun.formats.common.interface.Source.read_rows` does."""


def check_boxes(name: str, shape: tuple[int, ...], pieces: Sequence[Piece], *, address: str) -> None:
    """Check that boxes lie in a tensor of ``shape``, that torch can have one, and that they do not overlap.

    Raises:
        ForeignFileError: They do not; names the leaf.
    """
    if math.prod(size for size in shape if size) >= _MOST_ELEMENTS:
        raise ForeignFileError(f"{address}: leaf '{name}' cannot have the shape {list(shape)}.", folder=address)
    for piece in pieces:
        box = list(zip(piece.offsets, piece.sizes, shape, strict=False))
        if {len(piece.offsets), len(piece.sizes)} != {len(shape)} or any(o + s > full for o, s, full in box):
            raise ForeignFileError(
                f"{address}: leaf '{name}' of shape {list(shape)} has a chunk at {list(piece.offsets)} of sizes "
                f"{list(piece.sizes)}, which does not lie in it.",
                folder=address,
            )
    if overlap([(piece.offsets, piece.sizes) for piece in pieces]):
        raise ForeignFileError(f"{address}: chunks of leaf '{name}' overlap.", folder=address)


def read_rows(leaf: SourceLeaf, pieces: Sequence[Piece], first: int, count: int, *, address: str) -> Tensor:
    """Return a slab of ``leaf``; ``pieces`` are checked boxes of it.

    Raises:
        StateMismatchError: They do not hold all of the leaf.
    """
    dtype = check_rows(leaf, first, count)
    shape = row_shape(leaf.shape or ())
    if sum(math.prod(piece.sizes) for piece in pieces) != math.prod(shape):
        raise StateMismatchError(
            f"Leaf '{leaf.name}' is only partly in {address}: it was saved by some of its ranks.", leaves=[leaf.name]
        )
    if len(pieces) == 1:
        return pieces[0].read_rows(first, count)
    slab = torch.empty((count, *shape[1:]), dtype=dtype)
    for piece in pieces:
        begin = max(first, piece.offsets[0])
        end = min(first + count, piece.offsets[0] + piece.sizes[0])
        if begin < end and 0 not in piece.sizes:
            columns = [slice(o, o + s) for o, s in zip(piece.offsets[1:], piece.sizes[1:], strict=True)]
            rows = piece.read_rows(begin - piece.offsets[0], end - begin)
            slab[(slice(begin - first, end - first), *columns)].copy_(rows)
    return slab
