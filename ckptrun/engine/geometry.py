"""Boxes in row-major tensors: which overlap, and which bytes a box takes. Plain integers, no tensors, no files."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["Box", "Span", "dense_boxes", "overlap", "row_major_strides", "span_of"]

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


def dense_boxes(sizes: Sequence[int], most_elements: int) -> Iterator[Box]:
    """Cut a tensor into boxes of at most so many elements that each lie in one piece in it, in row-major order."""
    if not math.prod(sizes):
        return
    if not sizes:
        yield (), ()
        return
    strides = row_major_strides(sizes)
    dim = next(dim for dim, stride in enumerate(strides) if stride <= most_elements)
    step = most_elements // strides[dim]
    before, after = (1,) * dim, tuple(sizes[dim + 1 :])
    for outer in itertools.product(*map(range, sizes[:dim])):
        for first in range(0, sizes[dim], step):
            count = min(step, sizes[dim] - first)
            yield (*outer, first, *[0] * len(after)), (*before, count, *after)


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
