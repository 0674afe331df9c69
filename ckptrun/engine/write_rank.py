"""What one rank does in a save: refuse what may not be stored, write its shard files, tell what it wrote.

Knows one file after the other; what makes them a checkpoint is in ``save_results`` and ``commit``.

WARNING: no collectives here. It runs in whatever thread or process DCP chose, beside training.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.tensor import DTensor

from ckptrun.embedded import embed
from ckptrun.engine.backends.interface import Location
from ckptrun.engine.checkpointable import is_checkpointable
from ckptrun.engine.cycle_collector import collection_paused
from ckptrun.engine.layout import shard_file_name
from ckptrun.engine.points import PointHook
from ckptrun.engine.save_results import RankResult, SaveFacts
from ckptrun.engine.shard_file import FilePlan, PlannedChunk, plan_file, require_storable_name
from ckptrun.engine.tensor_bytes import TensorBytes, dtype_name, plain_tensor, require_storable
from ckptrun.engine.write_files import write_files
from ckptrun.errors import CheckpointError, UnsupportedLeafError
from ckptrun.values import encode

__all__ = ["SaveTarget", "check_plan", "write_rank"]

_QUICK_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveTarget:
    """Where one rank writes."""

    folder: Location
    rank: int
    save_id: str


def check_plan(plan: SavePlan) -> None:
    """Refuse what cannot be stored, as far as the plan shows it. Every rank calls before any rank writes.

    Raises:
        UnsupportedLeafError: Names the leaf.
    """
    for item in plan.items:
        require_storable_name(item.index.fqn)
        if item.tensor_data is not None:
            require_storable(item.index.fqn, item.tensor_data.properties.dtype, item.tensor_data.properties.layout)


def write_rank(
    plan: SavePlan, planner: SavePlanner, target: SaveTarget, facts: SaveFacts, reached: PointHook
) -> RankResult:
    """Write what ``plan`` gives to this rank.

    Raises:
        UnsupportedLeafError: A leaf of this rank, written by it or not, is neither tensor nor plain value. Nothing has
            been written by this rank.
        CheckpointError: The plan does not fit the state.
        OSError: From the storage.
    """
    state = getattr(planner, "state_dict", {})
    for name, value in state.items():
        _require_storable(name, value)
    for item in _of_type(plan, plain=False):
        if is_checkpointable(state.get(item.index.fqn)):
            # What it hands out is looked at before a byte is written, as everything else is.
            _source(item, planner)
    values = {item.index.fqn: _plain_value(item, planner) for item in _of_type(plan, plain=True)}
    reached("before_write")
    tensors = list(_of_type(plan, plain=False))
    written = []
    if tensors:
        target.folder.backend.make_folder(target.folder.path)
        with collection_paused():
            parts = _plan_parts(tensors, target)
        items = {(file.name, item.index.fqn): item for file, part in parts for item in part}
        # Training may go on beside this, and wants its garbage collected: pause only for what is over in no time.
        is_quick = sum(file.bytes for file, _ in parts) < _QUICK_BYTES
        with collection_paused() if is_quick else nullcontext():
            written = write_files(
                target.folder,
                [file for file, _ in parts],
                lambda file, chunk: _source(items[file.name, chunk.leaf], planner),
                reached=reached,
            )
    chunks = tuple(chunk for file in written for chunk in file.chunks)
    reached("after_write")
    return RankResult(
        files=tuple(file.file for file in written),
        chunks=chunks,
        values=values,
        shared=_shared(state),
        facts=facts.about([*values, *(name for name, _ in chunks)]),
    )


def _require_storable(name: str, value: Any) -> None:
    if not isinstance(value, Tensor):
        encode(embed(value, name=name), name=name)
    elif not isinstance(value, DTensor | ShardedTensor) and not is_checkpointable(value):
        plain_tensor(value, name=name)


def _of_type(plan: SavePlan, *, plain: bool) -> Iterator[WriteItem]:
    return (item for item in plan.items if (item.type is WriteItemType.BYTE_IO) == plain)


def _plain_value(item: WriteItem, planner: SavePlanner) -> Any:
    # Not resolve_data(): for plain values it returns a pickle.
    lookup = getattr(planner, "lookup_object", None)
    if lookup is None:
        raise UnsupportedLeafError(
            f"Leaf '{item.index.fqn}' is handed over as opaque bytes by {type(planner).__qualname__}. Use a planner "
            "with lookup_object(), such as DefaultSavePlanner."
        )
    value = embed(lookup(item.index), name=item.index.fqn)
    encode(value, name=item.index.fqn)
    return value


def _parts(items: Iterable[WriteItem]) -> list[list[WriteItem]]:
    """Spread items over files such that no file has two chunks of one leaf."""
    parts: list[list[WriteItem]] = []
    seen: dict[str, int] = defaultdict(int)
    for item in items:
        part = seen[item.index.fqn]
        seen[item.index.fqn] += 1
        if part == len(parts):
            parts.append([])
        parts[part].append(item)
    return parts


def _plan_parts(items: Iterable[WriteItem], target: SaveTarget) -> list[tuple[FilePlan, list[WriteItem]]]:
    # Where folders are not renamed, files of an earlier save lie in the same one.
    in_name = None if target.folder.backend.renames_folders else target.save_id
    return [
        (
            plan_file(
                shard_file_name(target.rank, part=part, save_id=in_name),
                [_planned_chunk(item) for item in chosen],
                save_id=target.save_id,
            ),
            chosen,
        )
        for part, chosen in enumerate(_parts(items))
    ]


def _planned_chunk(item: WriteItem) -> PlannedChunk:
    data = _tensor_data(item)
    return PlannedChunk(
        leaf=item.index.fqn,
        dtype=dtype_name(data.properties.dtype),
        shape=tuple(data.size),
        offsets=tuple(data.chunk.offsets),
        sizes=tuple(data.chunk.sizes),
    )


def _tensor_data(item: WriteItem) -> Any:
    if item.tensor_data is None:
        raise CheckpointError(f"The plan of the save says nothing about the tensor '{item.index.fqn}'.")
    return item.tensor_data


def _source(item: WriteItem, planner: SavePlanner) -> TensorBytes:
    name, data = item.index.fqn, _tensor_data(item)
    tensor = _resolved(item, planner)
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"The planner gives leaf '{name}' as {type(tensor).__qualname__}, planned was a tensor.")
    expected = (data.properties.dtype, tuple(data.chunk.sizes))
    if (tensor.dtype, tuple(tensor.shape)) != expected:
        # A planner that caches plans does not notice a new dtype.
        raise CheckpointError(
            f"Leaf '{name}' is {tensor.dtype} of shape {tuple(tensor.shape)}, but the plan of the save says "
            f"{expected[0]} of shape {expected[1]}. It is the plan of an earlier state: do not cache plans."
        )
    return TensorBytes(tensor, name=name)


def _resolved(item: WriteItem, planner: SavePlanner) -> Any:
    """``planner.resolve_data(item)``; quicker where the planner hands out a whole plain tensor."""
    hooks = ("resolve_data", "lookup_object", "transform_object")
    kind = type(planner)
    if isinstance(planner, DefaultSavePlanner) and all(
        getattr(kind, hook) is getattr(DefaultSavePlanner, hook) for hook in hooks
    ):
        value = planner.state_dict.get(item.index.fqn)
        if type(value) is Tensor:
            return value
    return planner.resolve_data(item)


def _shared(state: Mapping[str, Any]) -> frozenset[frozenset[str]]:
    """Groups of leaves that are the same memory on this rank."""
    # Nearly every tensor has an address of its own, which is quick to see.
    near: dict[int, list[str]] = defaultdict(list)
    for name, value in state.items():
        if isinstance(value, Tensor):
            near[_address(value)].append(name)
    groups: dict[Any, set[str]] = defaultdict(set)
    for name in (name for names in near.values() if len(names) > 1 for name in names):
        memory = _memory(state[name])
        if memory is not None:
            groups[memory].add(name)
    return frozenset(frozenset(names) for names in groups.values() if len(names) > 1)


def _address(value: Tensor) -> int:
    """Equal for leaves that are the same memory; 0 where it takes more to say."""
    return value.data_ptr() if type(value) is Tensor and value.layout is torch.strided else 0


def _memory(value: Any) -> Any:
    """What tells the memory of a tensor from that of any other; None where it has none, or none of its own."""
    if isinstance(value, ShardedTensor):
        return tuple(_memory(shard.tensor) for shard in value.local_shards()) or None
    tensor = value._local_tensor if isinstance(value, DTensor) else value
    if type(tensor) not in (Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided or not tensor.numel():
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()
