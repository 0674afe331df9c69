"""Finds the elements of two tensors that have other bits, in pieces of bounded size, in row-major order.

Never looks at values: -0.0 and 0.0 differ, and so do two NaNs with other payloads. Must not know files, nor print.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckptrun.elements.distance import Distance, has_steps, largest_distance

__all__ = ["Piece", "index_of", "unequal_pieces"]

# Stays in a core's cache, and keeps what is computed on the way small.
_PIECE_BYTES = 2**20
# What is copied at a time of a tensor that does not lie in memory row by row.
_COPY_BYTES = 2 * 2**20
_UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True)
class Piece:
    """Elements of two tensors that stand at the same places, one after the other; some of them differ.

    Shapes:
        one, other: (bytes,)
    """

    first: int
    """Number of the first of them in the tensors, in row-major order."""
    one: NDArray[np.uint8]
    other: NDArray[np.uint8]
    dtype: torch.dtype

    @functools.cached_property
    def places(self) -> NDArray[np.intp]:
        """Which of the elements differ, counted from ``first``, ascending; at least one does."""
        return np.flatnonzero(self._differs.reshape(-1, self._parts).any(axis=1))

    @property
    def distance(self) -> Distance | None:
        """Between those that differ; None for dtypes without a distance."""
        name = str(self.dtype).removeprefix("torch.")
        if not has_steps(name):
            return None
        one, other = self._bits
        return largest_distance(name, one[self._differs], other[self._differs])

    def elements(self, place: int) -> tuple[Tensor, Tensor]:
        """Return the two elements at one of the places.

        Shapes:
            returns: (), ()
        """
        begin, item = int(place) * self.dtype.itemsize, self.dtype.itemsize
        one, other = (
            torch.from_numpy(raw[begin : begin + item].copy()).view(self.dtype)[0] for raw in (self.one, self.other)
        )
        return one, other

    @property
    def first_differing(self) -> tuple[int, Tensor, Tensor]:
        """The number of the first element that differs, in row-major order in the tensors, and both."""
        place = int(self.places[0])
        return self.first + place, *self.elements(place)

    def differing(self) -> tuple[Tensor, Tensor]:
        """Return all elements that differ, of both.

        Shapes:
            returns: (count,), (count,)
        """
        places = torch.from_numpy(self.places)
        item = self.dtype.itemsize
        one, other = (
            torch.from_numpy(raw).view(-1, item)[places].contiguous().view(self.dtype).reshape(-1)
            for raw in (self.one, self.other)
        )
        return one, other

    @property
    def _parts(self) -> int:
        return 2 if self.dtype.is_complex else 1

    @functools.cached_property
    def _bits(self) -> tuple[NDArray[Any], NDArray[Any]]:
        kind = _UNSIGNED[self.dtype.itemsize // self._parts]
        return self.one.view(kind), self.other.view(kind)

    @functools.cached_property
    def _differs(self) -> NDArray[np.bool_]:
        one, other = self._bits
        return np.asarray(one != other)


def unequal_pieces(one: Tensor, other: Tensor) -> Iterator[Piece]:
    """Yield the pieces in which the two differ, in row-major order.

    Shapes:
        one, other: the same, of the same dtype, any strides, in host memory.
    """
    item = one.element_size()
    for first, left, right in _in_rows(one.detach(), other.detach(), 0):
        mine, theirs = _raw(left), _raw(right)
        for begin in range(0, mine.size, _PIECE_BYTES):
            pieces = mine[begin : begin + _PIECE_BYTES], theirs[begin : begin + _PIECE_BYTES]
            if not _equal(*pieces):
                yield Piece(first + begin // item, *pieces, one.dtype)


def index_of(number: int, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the index of the element with this number in row-major order."""
    result: list[int] = []
    for size in reversed(shape):
        number, at = divmod(number, size)
        result.append(at)
    return tuple(reversed(result))


def _in_rows(one: Tensor, other: Tensor, first: int) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Cut what would have to be copied into parts that may be; yield the number of their first element, and both."""
    if (_lies_in_rows(one) and _lies_in_rows(other)) or one.nbytes <= _COPY_BYTES:
        yield first, one, other
        return
    row = math.prod(one.shape[1:])
    step = _COPY_BYTES // (row * one.element_size())
    for begin in range(0, one.shape[0], max(step, 1)):
        if step:
            yield first + begin * row, one[begin : begin + step], other[begin : begin + step]
        else:
            yield from _in_rows(one[begin], other[begin], first + begin * row)


def _lies_in_rows(tensor: Tensor) -> bool:
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def _raw(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8).numpy()


def _equal(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    whole = one.size // 8 * 8
    return np.array_equal(one[:whole].view(np.uint64), other[:whole].view(np.uint64)) and np.array_equal(
        one[whole:], other[whole:]
    )
