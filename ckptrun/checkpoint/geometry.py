"""Boxes in row-major tensors: which overlap, and which bytes a box takes. Plain integers, no tensors, no files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Box", "Span", "overlap", "row_major_strides", "span_of"]

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The elements from the first to the last of a box, in the row-major order of what the box lies in."""

    begin: int
    count: int
    is_dense: bool
    """Whether all of them belong to the box."""


def row_major_strides(sizes: Sequence[int]) -> tuple[int, ...]:
    """Return by how many elements a step along each dim moves in a contiguous tensor."""
    return tuple(math.prod(sizes[dim + 1 :]) for dim in range(len(sizes)))


def span_of(outer_sizes: Sequence[int], offsets: Sequence[int], sizes: Sequence[int]) -> Span:
    """Return the span of a box that is not empty in a contiguous tensor of ``outer_sizes``."""
    strides = row_major_strides(outer_sizes)
    begin = sum(offset * stride for offset, stride in zip(offsets, strides, strict=True))
    last = begin + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    count = last - begin + 1
    return Span(begin=begin, count=count, is_dense=count == math.prod(sizes))


def overlap(boxes: Sequence[Box]) -> bool:
    """Whether two of the boxes hold the same element. Sweeps along the dim that tells most of them apart."""
    solid = [box for box in boxes if math.prod(box[1])]
    if len(solid) < 2:
        return False
    dims = range(len(solid[0][0]))
    if not dims:
        return True
    sweep = max(dims, key=lambda dim: len({offsets[dim] for offsets, _ in solid}))
    active: list[Box] = []
    for box in sorted(solid, key=lambda box: box[0][sweep]):
        active = [(offsets, sizes) for offsets, sizes in active if offsets[sweep] + sizes[sweep] > box[0][sweep]]
        if any(_meet(box, other) for other in active):
            return True
        active.append(box)
    return False


def _meet(one: Box, other: Box) -> bool:
    return all(
        begin < other_begin + other_size and other_begin < begin + size
        for begin, size, other_begin, other_size in zip(*one, *other, strict=True)
    )
