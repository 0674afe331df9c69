"""What one rank does in a load: check that state and checkpoint fit, read what its plan asks for, hand it over.

WARNING: no collectives here; DCP gathers errors after it.
"""

import functools
import io
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION
from torch.distributed.checkpoint.metadata import (
    STORAGE_TYPES,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem

from ckptrun.embedded import restore
from ckptrun.engine.backends.interface import Location
from ckptrun.engine.checkpointable import held_elements, is_checkpointable
from ckptrun.engine.manifest import Chunk, Leaf, Manifest
from ckptrun.engine.nested import Places
from ckptrun.engine.read_chunks import BoxRead, read_boxes, torch_dtype
from ckptrun.engine.read_files import ShardFiles
from ckptrun.engine.tensor_bytes import dtype_name
from ckptrun.errors import StateMismatchError
from ckptrun.local_part import local_part
from ckptrun.memory import require_memory

__all__ = ["read_rank", "to_metadata"]

_SHOWN = 5


def to_metadata(manifest: Manifest) -> Metadata:
    """Return what planners want to know of a checkpoint."""
    paths = {name: leaf.path for name, leaf in manifest.leaves.items()}
    return Metadata(
        state_dict_metadata={name: _to_storage_type(leaf) for name, leaf in manifest.leaves.items()},
        planner_data=paths if manifest.planner_data is None else manifest.planner_data,
        version=CURRENT_DCP_VERSION,
    )


def _to_storage_type(leaf: Leaf) -> STORAGE_TYPES:
    if leaf.shape is None:
        return BytesStorageMetadata()
    return TensorStorageMetadata(
        properties=_properties(torch_dtype(leaf)),
        size=torch.Size(leaf.shape),
        chunks=[
            ChunkStorageMetadata(offsets=torch.Size(chunk.offsets), sizes=torch.Size(chunk.sizes))
            for chunk in leaf.chunks
        ],
    )


@functools.cache
def _properties(dtype: torch.dtype) -> TensorProperties:
    return TensorProperties(dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Read:
    item: ReadItem
    leaf: Leaf
    chunk: Chunk
    target: Tensor


def read_rank(plan: LoadPlan, planner: LoadPlanner, folder: Location, manifest: Manifest) -> None:
    """Read what ``plan`` asks for into what ``planner`` resolves.

    Raises:
        StateMismatchError: State and checkpoint do not fit; nothing has been read.
        ShardFileError: A file is missing or damaged.
    """
    tensors = [item for item in plan.items if item.type is LoadItemType.TENSOR]
    values = [item for item in plan.items if item.type is LoadItemType.BYTE_IO]
    _require_values(values, planner, folder)
    _require_whole(tensors, planner, folder, manifest)
    reads = _resolve(tensors, planner, manifest)
    _require_fit(reads, folder)
    with ShardFiles(folder, manifest.files) as files:
        read_boxes(files, [BoxRead(read.leaf, read.chunk, read.item.storage_offsets, read.target) for read in reads])
    for read in reads:
        planner.commit_tensor(read.item, read.target)
    _load_values(values, planner, manifest)


def _state(planner: LoadPlanner) -> Mapping[str, Any]:
    return planner.state_dict if isinstance(planner, DefaultLoadPlanner) else {}


def _require_values(items: list[ReadItem], planner: LoadPlanner, folder: Location) -> None:
    """DCP would put the plain value where the tensor is, and say nothing."""
    names = [item.dest_index.fqn for item in items if isinstance(_state(planner).get(item.dest_index.fqn), Tensor)]
    if names:
        raise StateMismatchError(
            f"Leaf '{names[0]}' is a tensor in the state but a plain value in {folder}.",
            leaves=names,
            folder=str(folder),
        )


def _require_whole(items: list[ReadItem], planner: LoadPlanner, folder: Location, manifest: Manifest) -> None:
    """DCP would leave what is not in the checkpoint as it is in the state, and say nothing."""
    partial = {name for name, leaf in manifest.leaves.items() if not leaf.is_whole}
    if not partial:
        return
    covered: dict[str, int] = defaultdict(int)
    for item in items:
        covered[item.dest_index.fqn] += math.prod(item.lengths)
    for name, value in _state(planner).items():
        if name in partial and isinstance(value, Tensor) and covered[name] != _local_elements(value):
            raise StateMismatchError(
                f"Only part of leaf '{name}' is in {folder}: it was saved by some of its ranks, and this rank needs "
                f"{_local_elements(value)} elements, of which {covered[name]} are there.",
                leaves=[name],
                folder=str(folder),
            )


def _local_elements(value: Tensor) -> int:
    if is_checkpointable(value):
        return held_elements(value)
    if isinstance(value, ShardedTensor):
        return sum(shard.tensor.numel() for shard in value.local_shards())
    return local_part(value).numel()


def _resolve(items: list[ReadItem], planner: LoadPlanner, manifest: Manifest) -> list[_Read]:
    """Find chunk and target of each item; resolved once, because a planner may allocate."""
    reads = []
    for item in items:
        if not math.prod(item.lengths):
            continue
        leaf = manifest.leaves[item.storage_index.fqn]
        target = _resolved(item, planner).detach()
        if type(target) is Tensor and target.layout is torch.strided and not target.is_meta:
            require_memory(target, name=leaf.name)
        reads.append(_Read(item=item, leaf=leaf, chunk=_chunk_at(leaf, item), target=target))
    return reads


def _chunk_at(leaf: Leaf, item: ReadItem) -> Chunk:
    if len(leaf.chunks) == 1:
        return leaf.chunks[0]
    offsets = tuple(item.storage_index.offset or ())
    # An empty chunk may start where a full one does.
    return next(chunk for chunk in leaf.chunks if chunk.bytes and chunk.offsets == offsets)


def _resolved(item: ReadItem, planner: LoadPlanner) -> Tensor:
    """``planner.resolve_tensor(item)``; quicker where the planner hands out a whole plain tensor."""
    if type(planner) is DefaultLoadPlanner:
        value = planner.state_dict.get(item.dest_index.fqn)
        if type(value) is Tensor and value.shape == item.lengths:
            return value
    return planner.resolve_tensor(item)


def _require_fit(reads: list[_Read], folder: Location) -> None:
    """DCP would cast, and say nothing."""
    wrong: dict[str, str] = {}
    for read in reads:
        found, shape = dtype_name(read.target.dtype), tuple(read.target.shape)
        if found != read.leaf.dtype:
            wrong.setdefault(read.leaf.name, f"is {found} in the state but {read.leaf.dtype} in the checkpoint")
        elif shape != tuple(read.item.lengths):
            wrong.setdefault(read.leaf.name, f"is read as {tuple(read.item.lengths)} into a tensor of shape {shape}")
    if wrong:
        shown = "; ".join(f"'{name}' {what}" for name, what in list(wrong.items())[:_SHOWN])
        more = f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise StateMismatchError(
            f"{folder} does not fit the state: leaf {shown}{more}. Nothing is converted silently; load into tensors of "
            "the dtype that was saved.",
            leaves=list(wrong),
            folder=str(folder),
        )


def _load_values(items: list[ReadItem], planner: LoadPlanner, manifest: Manifest) -> None:
    """Hand over plain values. ``DefaultLoadPlanner.load_bytes`` would unpickle, so what it does next is done here."""
    live = _state(planner)
    values: dict[str, Any] = {}
    for item in items:
        leaf = manifest.leaves[item.storage_index.fqn]
        values[item.dest_index.fqn] = restore(leaf.value, name=leaf.name, like=live.get(item.dest_index.fqn))
    if not isinstance(planner, DefaultLoadPlanner) or type(planner).load_bytes is not DefaultLoadPlanner.load_bytes:
        for item in items:
            # Another planner expects what torch.save writes; these bytes are made here from a value that was never
            # pickled.
            raw = io.BytesIO()
            torch.save(values[item.dest_index.fqn], raw)
            raw.seek(0)
            planner.load_bytes(item, raw)
    elif planner.flatten_state_dict:
        _place(values, planner, manifest)
    else:
        planner.state_dict.update(values)


def _place(values: Mapping[str, Any], planner: DefaultLoadPlanner, manifest: Manifest) -> None:
    """Put plain values at their places in the nested state, and keys of dicts into the order of the save."""
    places, paths = Places(planner.original_state_dict), planner.mappings
    for name, value in values.items():
        places.put(paths[name], value)
    if manifest.containers is None:
        # Written before leaves stood in the order of the state.
        return
    here, saved = (
        [name for name in paths if name in manifest.leaves],
        [name for name in manifest.leaves if name in paths],
    )
    if here != saved:
        places.put_in_order(paths[name] for name in saved)
