"""Digests of whole leaves: plain values, tensors, and DTensors without gathering them.

Order of events in :func:`digest_leaves`: leaves that have no digest are refused; each rank sums up its own chunks; the
sums of all DTensors are added, with one all-reduce per process group of a sharded mesh axis; digits are made. Axes
along which a leaf is replicated are left out: each replica has the digest of its own copy, and one that differs shows.
Must not know what a leaf means, nor files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor
from torch.nn.parameter import Parameter, is_lazy

from ckptrun.digest.layout import Reading, boxes, readings, sharded_axes, unsupported
from ckptrun.digest.sums import Sums, finish, finish_value
from ckptrun.digest.tally import Tally
from ckptrun.errors import UnsupportedLeafError
from ckptrun.memory import require_memory
from ckptrun.values import canonical_bytes

__all__ = ["digest", "digest_leaves", "digest_with_parts", "part_digests"]


def digest(value: Any) -> str:
    """Return 32 hex digits that depend on dtype, full shape and bits of ``value``, not on how it is sharded.

    Leaves the tensor, the random number generators and the grad mode as they are.

    Args:
        value: A tensor, a DTensor or a plain value. For a DTensor all ranks of its mesh call, and all get the same
            digits, except replicas that do not hold the same bits.

    Raises:
        UnsupportedLeafError: There is no digest for ``value``; the message says why.
    """
    return digest_leaves({"value": value})["value"]


def digest_leaves(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each leaf; what :func:`digest` returns for one, with all collectives together.

    Called by all ranks of all meshes of the DTensors in ``leaves``, with the same names for the DTensors; other leaves
    may differ from rank to rank. The order of the names does not matter.

    Raises:
        UnsupportedLeafError: There is no digest for a leaf; the message names it.
    """
    return digest_with_parts(leaves)[0]


def digest_with_parts(leaves: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return what :func:`digest_leaves` returns, and beside it what :func:`part_digests` returns, in one pass."""
    with torch.no_grad():
        values, tensors = _sorted_out(leaves)
        rows = _rows_of(tensors)
        table = _own_sums(rows)
        parts = values | _parts_of(table, rows)
        _add_over_ranks(table, rows)
        return values | _finished(tensors, table, rows), parts


def part_digests(leaves: Mapping[str, Any]) -> dict[str, str]:
    """Return, for each leaf, something that is equal only if what this rank holds of it has the same bits.

    No collective; only for comparing the same leaves in the same layout on the same rank, on whatever device.

    Raises:
        UnsupportedLeafError: There is no digest for a leaf; the message names it.
    """
    with torch.no_grad():
        values, tensors = _sorted_out(leaves)
        rows = _rows_of(tensors)
        return values | _parts_of(_own_sums(rows), rows)


def _sorted_out(leaves: Mapping[str, Any]) -> tuple[dict[str, str], "list[_Leaf]"]:
    """Return the digests of plain values, and the tensors, by name."""
    digests: dict[str, str] = {}
    tensors: list[_Leaf] = []
    for name in sorted(leaves):
        value = leaves[name]
        if isinstance(value, Tensor):
            # The type first: it is quicker to see, and nearly always that.
            if type(value) is not Tensor and isinstance(value, DTensor):
                tensors.append(_sharded(name, value))
            else:
                tensors.append(_local(name, value))
        else:
            digests[name] = finish_value(canonical_bytes(value, name=name))
    return digests, tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """One way to see the local tensor; ``boxes`` are parts of it and their offsets, None if its sizes do not fit."""

    sizes: tuple[int, ...]
    boxes: list[tuple[Tensor, tuple[int, ...]]] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Leaf:
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    local: Tensor
    candidates: list[_Candidate]
    groups: list[tuple[dist.ProcessGroup, str]]
    """Per sharded mesh axis, the process group and the device type on which it sums."""


def _local(name: str, value: Tensor) -> _Leaf:
    tensor = _plain(name, value)
    shape = tuple(tensor.shape)
    whole = _Candidate(sizes=shape, boxes=[(tensor, (0,) * len(shape))])
    return _Leaf(name=name, dtype=tensor.dtype, shape=shape, local=tensor, candidates=[whole], groups=[])


def _sharded(name: str, value: DTensor) -> _Leaf:
    mesh, placements, coordinate = value.device_mesh, value.placements, value.device_mesh.get_coordinate()
    if refused := unsupported(placements):
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a DTensor with placements {placements}: {refused[0]} does not say which values a rank "
            "holds, so there is no digest. Redistribute it to Shard or Replicate first."
        )
    if coordinate is None:
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a DTensor on {mesh}, and this rank is not part of that mesh. "
            "Leave it out on ranks that hold none of it."
        )
    local, shape = _plain(name, value.to_local()), tuple(value.shape)
    return _Leaf(
        name=name,
        dtype=value.dtype,
        shape=shape,
        local=local,
        candidates=[_candidate(local, reading) for reading in readings(shape, mesh.shape, placements, coordinate)],
        groups=[(mesh.get_group(axis), mesh.device_type) for axis in sharded_axes(mesh.shape, placements)],
    )


def _candidate(local: Tensor, reading: Reading) -> _Candidate:
    sizes, parts = boxes(reading)
    if sizes != tuple(local.shape):
        return _Candidate(sizes=sizes, boxes=None)
    return _Candidate(sizes=sizes, boxes=[(local[part.inside], part.offsets) for part in parts])


def _plain(name: str, tensor: Tensor) -> Tensor:
    """The tensor as a plain, strided ``torch.Tensor`` without history, sharing its memory."""
    if type(tensor) not in (Tensor, Parameter):
        tensor = _own_memory(name, tensor)
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a tensor of {tensor.layout}, {tensor.dtype} on {tensor.device}; only strided tensors "
            "that hold their values have a digest."
        )
    require_memory(tensor, name=name)
    return tensor.detach()


def _own_memory(name: str, tensor: Tensor) -> Tensor:
    if isinstance(tensor, AsyncCollectiveTensor):
        return tensor.wait()
    kind = type(tensor)
    is_wrapper = kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ or hasattr(kind, "local_shards")
    if is_wrapper or is_lazy(tensor):
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a {kind.__module__}.{kind.__qualname__}, whose values do not lie in its own memory. "
            "Return the tensors it consists of, or a DTensor, from state_dict()."
        )
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.detach().as_subclass(Tensor)


def _rows_of(leaves: "Sequence[_Leaf]") -> "list[tuple[_Leaf, _Candidate]]":
    return [(leaf, way) for leaf in leaves for way in leaf.candidates]


def _parts_of(table: Tensor, rows: "Sequence[tuple[_Leaf, _Candidate]]") -> dict[str, str]:
    """From the sums of this rank's chunks alone, of each leaf's first candidate that fits here."""
    parts: dict[str, str] = {}
    for (leaf, _), (first, second, misfits) in zip(rows, table.tolist(), strict=True):
        if misfits == 0 and leaf.name not in parts:
            parts[leaf.name] = f"{leaf.dtype} {tuple(leaf.local.shape)} {first} {second}"
    return parts


def _finished(leaves: "Sequence[_Leaf]", table: Tensor, rows: "Sequence[tuple[_Leaf, _Candidate]]") -> dict[str, str]:
    """Take of each leaf the first candidate whose sizes fit on all ranks."""
    digests: dict[str, str] = {}
    for (leaf, _), (first, second, misfits) in zip(rows, table.tolist(), strict=True):
        if misfits == 0 and leaf.name not in digests:
            sums = Sums() + Sums(first=first, second=second)
            digests[leaf.name] = finish(sums, dtype=leaf.dtype, shape=leaf.shape)
    for leaf in leaves:
        if leaf.name not in digests:
            raise UnsupportedLeafError(
                f"Leaf '{leaf.name}' is a DTensor of shape {leaf.shape} whose local tensors do not have the sizes "
                f"that its placements say (on this rank: expected {leaf.candidates[0].sizes}, "
                f"got {tuple(leaf.local.shape)}), so there is no digest."
            )
    return digests


def _own_sums(rows: Sequence[tuple[_Leaf, _Candidate]]) -> Tensor:
    """Shape: (candidates, 3) int64 on the CPU: the two sums of this rank's chunks, and 1 where the sizes do not fit."""
    tally = Tally(len(rows))
    for place, (leaf, way) in enumerate(rows):
        for chunk, offsets in way.boxes or []:
            tally.add(place, chunk, offsets=offsets, shape=leaf.shape)
    misfits = torch.tensor([way.boxes is None for _, way in rows], dtype=torch.int64, device="cpu")
    return torch.cat([tally.totals(), misfits[:, None]], 1)


def _add_over_ranks(table: Tensor, rows: Sequence[tuple[_Leaf, _Candidate]]) -> None:
    # A process group may belong to an axis of several meshes (a mesh and its submesh): one all-reduce serves all.
    # Leaves come sorted by name, so every rank meets the groups in the same order.
    places: dict[str, list[int]] = {}
    groups: dict[str, tuple[dist.ProcessGroup, str]] = {}
    for place, (leaf, _) in enumerate(rows):
        for group, device_type in leaf.groups:
            groups.setdefault(group.group_name, (group, device_type))
            places.setdefault(group.group_name, []).append(place)
    for key, (group, device_type) in groups.items():
        chosen = torch.tensor(places[key], dtype=torch.int64, device="cpu")
        buffer = table[chosen].to(device_type)
        dist.all_reduce(buffer, group=group)
        table[chosen] = buffer.to("cpu")
