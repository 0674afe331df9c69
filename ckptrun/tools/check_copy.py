"""Compares what was written with where it came from: every leaf, bit by bit, slab by slab."""

import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ckptrun.errors import CheckpointDamagedError
from ckptrun.formats.common.interface import Source
from ckptrun.formats.common.selection import Item, Selection
from ckptrun.text import joined

__all__ = ["check_copy"]


def check_copy(
    selection: Selection, copy: Source, *, left_out: tuple[Item, ...], advance: Callable[[int], None]
) -> None:
    """Check that ``copy`` holds the leaves of ``selection``, with the same bits, and no others.

    Args:
        selection: What was to be written.
        copy: What was.
        left_out: What is rightly missing.
        advance: Told how many more bytes were compared.

    Raises:
        CheckpointDamagedError: It does not; names the first leaf.
    """
    expected = {item.name: item for item in selection.items if item not in left_out}
    wrong = [*(expected.keys() - copy.leaves.keys()), *(copy.leaves.keys() - expected.keys())]
    if wrong:
        raise CheckpointDamagedError(
            f"What was written does not have the leaves of {selection.source.address}: {joined(sorted(wrong))}. "
            "Nothing was put in place."
        )
    for item in expected.values():
        what = _tensors_differ(selection, item, copy, advance) if item.is_tensor else _values_differ(item, copy)
        if what:
            raise CheckpointDamagedError(
                f"Leaf '{item.name}' of {selection.source.address} was read back differently: {what}. "
                "Nothing was put in place. The storage, the memory or ckptrun is at fault; try again."
            )


def _tensors_differ(selection: Selection, item: Item, copy: Source, advance: Callable[[int], None]) -> str:
    leaf = copy.leaves[item.name]
    if (leaf.dtype, leaf.shape) != (item.dtype, item.leaf.shape):
        return f"{item.dtype} of shape {item.leaf.shape} has become {leaf.dtype} of shape {leaf.shape}"
    for first, count in item.slabs():
        one, other = selection.rows(item, first, count), copy.read_rows(item.name, first, count)
        if not _same_bits(one, other):
            return f"rows {first} to {first + count}"
        advance(_bytes(one))
    return ""


def _bytes(tensor: Tensor) -> int:
    return math.prod(tensor.shape) * tensor.element_size()


def _same_bits(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(
        one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)
    )


def _values_differ(item: Item, copy: Source) -> str:
    found = copy.leaves[item.name]
    return "" if not found.is_tensor and _same(item.leaf.value, found.value) else "the plain value"


def _same(one: Any, other: Any) -> bool:
    """Whether two plain values, or tuples with tensors in them, are equal in type and bits."""
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype is other.dtype and _same_bits(one.contiguous(), other.contiguous())
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return struct.pack(">d", one) == struct.pack(">d", other)
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
