"""Cuts a chunk into blocks of bounded size and shows each as rows of 32-bit words (steps 1 and 2 of the definition).

Whatever strides, dtype and place in the full tensor the chunk has, a block is a matrix of words with the numbers of its
rows and of its first column of words. Where the memory allows it, the block is a view. Must not know multipliers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from torch import Tensor

from ckptrun.digest.multipliers import WORDS_PER_LINE, Indices

__all__ = ["Block", "blocks"]

_LEAST_ROW_BYTES = 1024
_WORD_BYTES = 4
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Part of a chunk. Shapes: words (number of rows, any) int32, any strides."""

    words: Tensor
    first_word: int
    rows: range | Indices
    """Numbers of the rows in the full tensor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Grid:
    """How a full tensor is seen as rows and columns. ``lead`` dims number the rows; ``inner`` follow dim ``lead``."""

    shape: tuple[int, ...]
    lead: int
    inner: tuple[int, ...]
    inner_elements: int
    element_bytes: int


@lru_cache(maxsize=4096)
def _grid(shape: tuple[int, ...], element_bytes: int) -> _Grid:
    lead, row_bytes = len(shape), element_bytes
    while lead and row_bytes < _LEAST_ROW_BYTES:
        lead -= 1
        row_bytes *= shape[lead]
    inner = shape[lead + 1 :]
    return _Grid(shape=shape, lead=lead, inner=inner, inner_elements=math.prod(inner), element_bytes=element_bytes)


def blocks(chunk: Tensor, *, offsets: Sequence[int], shape: Sequence[int], limit_words: int) -> Iterator[Block]:
    """Yield blocks of at most about ``limit_words`` words that together are ``chunk``.

    Args:
        chunk: A plain strided tensor without autograd history.
        offsets: Where the chunk starts in the full tensor, per dim.
        shape: Of the full tensor.
        limit_words: Also bounds what is copied at a time where a view is not possible.
    """
    if chunk.numel() == 0:
        return
    offsets, shape = tuple(offsets), tuple(shape)
    if chunk.dim() == 0:
        chunk, offsets, shape = chunk.reshape(1), (0,), (1,)
    grid = _grid(shape, chunk.element_size())
    for piece, start in _pieces(chunk, offsets, grid, limit_words * _WORD_BYTES // grid.element_bytes):
        # NOTE: complex128 stays what it is; there is no 16-byte integer.
        bits = piece.resolve_conj().resolve_neg().view(_BITS.get(grid.element_bytes, piece.dtype))
        words, first_word = _words(_matrix(bits, start, grid), start[grid.lead] * grid.inner_elements)
        yield Block(words=words, first_word=first_word, rows=_row_numbers(piece, start, grid))


def _pieces(
    chunk: Tensor, offsets: tuple[int, ...], grid: _Grid, limit: int
) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    sizes = (*chunk.shape[: grid.lead + 1], *grid.inner)
    cut = grid.lead
    while cut and math.prod(sizes[cut:]) <= limit:
        cut -= 1
    if math.prod(sizes) <= limit:
        yield chunk, offsets
        return
    step = max(1, limit // math.prod(sizes[cut + 1 :]))
    if cut == grid.lead:
        # Cuts between lines of words, so that a wide row is not full of line ends.
        whole_lines = WORDS_PER_LINE * _WORD_BYTES
        step = max(1, step - step % (whole_lines // math.gcd(whole_lines, grid.inner_elements * grid.element_bytes)))
    for index in product(*(range(size) for size in sizes[:cut])):
        part = chunk[index].reshape((1,) * cut + tuple(chunk.shape[cut:])) if cut else chunk
        begin, end = offsets[cut], offsets[cut] + sizes[cut]
        while begin < end:
            stop = min(end, (begin // step + 1) * step)
            start = (*(o + i for o, i in zip(offsets, index, strict=False)), begin, *offsets[cut + 1 :])
            yield part.narrow(cut, begin - offsets[cut], stop - begin), start
            begin = stop


def _matrix(bits: Tensor, start: tuple[int, ...], grid: _Grid) -> Tensor:
    """The elements of a piece as (rows, columns).

    A piece cut in a dim after ``lead`` is put into a frame of zeros: zeros add nothing to a sum, and the frame is not
    much larger, because these dims have less than 1 KiB together.
    """
    outer = bits.shape[: grid.lead + 1]
    if bits.shape[grid.lead + 1 :] != grid.inner:
        frame = bits.new_zeros((*outer, *grid.inner))
        target = frame
        for dim in range(grid.lead + 1, bits.dim()):
            target = target.narrow(dim, start[dim], bits.shape[dim])
        target.copy_(bits)
        bits = frame
    return bits.reshape(math.prod(outer[:-1]), outer[-1] * grid.inner_elements)


def _words(matrix: Tensor, first_column: int) -> tuple[Tensor, int]:
    """View or copy (rows, columns) of elements as (rows, words), with the number of the first word."""
    size = matrix.element_size()
    if matrix.stride(1) != 1:
        # By way of a dense transpose: torch turns only such a one over in blocks, eight times as fast as any other.
        matrix = matrix.t().contiguous().t().contiguous()
    if size >= _WORD_BYTES:
        return matrix.view(torch.int32), first_column * (size // _WORD_BYTES)
    per_word = _WORD_BYTES // size
    first_word, before = divmod(first_column, per_word)
    rows, columns = matrix.shape
    if any(place % per_word for place in (before, columns, matrix.storage_offset(), matrix.stride(0))):
        end = before + columns
        frame = matrix.new_empty((rows, -(-end // per_word) * per_word))
        frame[:, :before] = 0
        frame[:, before:end] = matrix
        frame[:, end:] = 0
        matrix = frame
    return matrix.view(torch.int32), first_word


def _row_numbers(piece: Tensor, start: tuple[int, ...], grid: _Grid) -> range | Indices:
    first, count, is_range = 0, 1, True
    for size, begin, full in zip(piece.shape[: grid.lead], start, grid.shape, strict=False):
        is_range = is_range and (count == 1 or size == full)
        first, count = first * full + begin, count * size
    if is_range:
        return range(first, first + count)
    numbers = np.zeros(1, dtype=np.int64)
    for size, begin, full in zip(piece.shape[: grid.lead], start, grid.shape, strict=False):
        numbers = (numbers[:, None] * full + np.arange(begin, begin + size)).reshape(-1)
    return numbers
