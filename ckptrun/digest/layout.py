"""Which boxes of the full tensor a rank's local tensor of a DTensor holds, in integers only.

Where a dim does not divide evenly, torch itself reads placements in two ways: ``_StridedShard`` followed by ``Shard``
on one dim (FSDP on top of tensor parallelism) is read from left to right by ``distribute_tensor`` and by
``compute_local_shape_and_global_offset``, while ``fully_shard`` divides for tensor parallelism first. Only the sizes of
the local tensors tell which of the two holds, so both readings are given. In both, a local tensor may be several boxes.
Must not know digests, nor talk to other ranks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from torch.distributed.tensor import Replicate, Shard

__all__ = ["Box", "Reading", "Run", "boxes", "readings", "sharded_axes", "unsupported"]

Run = tuple[int, int]
"""Start and length, in the full tensor, of consecutive indices of one dim."""

Reading = tuple[tuple[Run, ...], ...]
"""Per dim of the tensor, the runs that the local tensor holds, in its own order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A part of the local tensor that is a box in the full tensor."""

    inside: tuple[slice, ...]
    offsets: tuple[int, ...]


def unsupported(placements: Sequence[Any]) -> list[Any]:
    """The placements that do not say which values a rank holds: Partial, and kinds this module does not know."""
    return [placement for placement in placements if not (_is_shard(placement) or isinstance(placement, Replicate))]


def _is_shard(placement: Any) -> bool:
    # torch 2.13 took away that a _StridedShard is a Shard; nothing public names it.
    return isinstance(placement, Shard) or hasattr(placement, "split_factor")


def sharded_axes(mesh_shape: Sequence[int], placements: Sequence[Any]) -> tuple[int, ...]:
    """The mesh axes along which ranks hold different parts."""
    return tuple(axis for axis, placement in enumerate(placements) if _is_shard(placement) and mesh_shape[axis] > 1)


def readings(
    shape: Sequence[int], mesh_shape: Sequence[int], placements: Sequence[Any], coordinate: Sequence[int]
) -> list[Reading]:
    """The ways to read ``placements``, the likeliest first; their number is the same on every rank of a mesh.

    Args:
        shape: Of the full tensor.
        mesh_shape: Number of ranks per mesh axis.
        placements: One per mesh axis, none of them ``unsupported``.
        coordinate: Of this rank, per mesh axis.
    """
    in_turn: list[tuple[Run, ...]] = [((0, size),) for size in shape]
    in_order = list(in_turn)
    axes = [axis for axis, placement in enumerate(placements) if _is_shard(placement)]
    for axis in axes:
        dim = placements[axis].dim
        strides = getattr(placements[axis], "split_factor", 1)
        in_turn[dim] = _share(in_turn[dim], strides, mesh_shape[axis], coordinate[axis])
    if all(getattr(placements[axis], "split_factor", 1) == 1 for axis in axes):
        return [tuple(in_turn)]
    order = _shard_order(mesh_shape, placements, axes)
    if order is None:
        return [tuple(in_turn)]
    for axis in order:
        dim = placements[axis].dim
        in_order[dim] = _share(in_order[dim], 1, mesh_shape[axis], coordinate[axis])
    return [tuple(in_order), tuple(in_turn)]


def _shard_order(mesh_shape: Sequence[int], placements: Sequence[Any], axes: Sequence[int]) -> list[int] | None:
    """The order of mesh axes in which plain division gives these placements, or None if none does.

    Source: DTensorSpec._maybe_convert_StridedShard_to_shard_order in torch.distributed.tensor.
    """
    order: list[int] = []
    for axis in reversed(axes):
        same_dim = [other for other in order if placements[other].dim == placements[axis].dim]
        before, divided = 0, 1
        while divided != getattr(placements[axis], "split_factor", 1):
            if before == len(same_dim):
                return None
            divided *= mesh_shape[same_dim[before]]
            before += 1
        order.insert(order.index(same_dim[before]) if before < len(same_dim) else len(order), axis)
    return order


def _share(runs: tuple[Run, ...], strides: int, ranks: int, rank: int) -> tuple[Run, ...]:
    """Divide the indices in ``runs`` into ``strides`` parts, each of them among ``ranks``; keep what ``rank`` gets."""
    result: list[Run] = []
    size = sum(length for _, length in runs)
    for begin, end in (_part(0, size, strides, which) for which in range(strides)):
        for start, length in _cut(runs, *_part(begin, end, ranks, rank)):
            if result and sum(result[-1]) == start:
                start, length = result[-1][0], result.pop()[1] + length
            result.append((start, length))
    return tuple(result)


def _part(begin: int, end: int, parts: int, which: int) -> tuple[int, int]:
    """Borders of a part as ``torch.chunk`` makes them; parts at the end may be smaller or empty."""
    step = -(-(end - begin) // parts)
    return min(end, begin + which * step), min(end, begin + (which + 1) * step)


def _cut(runs: tuple[Run, ...], begin: int, end: int) -> list[Run]:
    """The runs of those indices that stand at places ``begin`` to ``end`` of ``runs``."""
    result: list[Run] = []
    for start, length in runs:
        low, high = max(0, begin), min(length, end)
        if low < high:
            result.append((start + low, high - low))
        begin, end = begin - length, end - length
    return result


def boxes(reading: Reading) -> tuple[tuple[int, ...], list[Box]]:
    """The sizes that the local tensor must have under ``reading``, and the boxes it consists of."""
    per_dim: list[list[tuple[slice, int]]] = []
    for runs in reading:
        here, parts = 0, []
        for start, length in runs:
            parts.append((slice(here, here + length), start))
            here += length
        per_dim.append(parts)
    sizes = tuple(sum(length for _, length in runs) for runs in reading)
    found = [
        Box(inside=tuple(inside for inside, _ in parts), offsets=tuple(start for _, start in parts))
        for parts in product(*per_dim)
    ]
    return sizes, found
