"""``PlanCache``: plan a save once, and again only when the structure of the state has changed.

DCP plans every save anew: each rank lists its chunks, rank 0 gathers, merges and scatters the lists. While names,
kinds, dtypes, shapes and layouts stay the same on every rank, all of that comes out the same.

[Note: when a plan may be used again]
Each rank compares the structure of its whole state, in order, with that of the save the plan was made for; one that is
not the same sends its new list, and rank 0 merges it with the lists it has. Nothing else is trusted: what is written is
checked against the plan leaf by leaf once more. (DCP's own ``enable_plan_caching`` compares neither dtypes nor which
planner a list came from: two states saved in turn would share one cache.)
"""

import dataclasses
import os
import uuid
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed._shard.sharded_tensor.api import ShardedTensor
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.tensor import DTensor

from ckptrun.engine.checkpointable import chunks_of, is_checkpointable
from ckptrun.errors import InternalError

__all__ = ["PlanCache"]

_Structure = list[tuple[Any, ...]]


@dataclasses.dataclass(slots=True)
class _Plans:
    """What one rank remembers of its last save; rank 0 of all ranks."""

    structure: _Structure | None = None
    final: SavePlan | None = None
    local: list[SavePlan] = dataclasses.field(default_factory=list)
    metadata: Metadata | None = None


# A save in another process gets planner and cache by pickle each time; what they remember stays in that process.
_REMEMBERED: dict[str, _Plans] = {}

# A forked child saves with other ranks, or alone: what its parent's rank remembers is a part of another plan.
os.register_at_fork(after_in_child=_REMEMBERED.clear)


class PlanCache:
    """Remembers the plan of one state. Every rank makes its own, and uses it for each save of that state."""

    def __init__(self) -> None:
        self._key = uuid.uuid4().hex

    def planner(self, *, flatten_state_dict: bool = True, flatten_sharded_tensors: bool = True) -> DefaultSavePlanner:
        """Return the planner for the next save: ``dcp.save(..., planner=cache.planner())``."""
        return _CachingSavePlanner(
            self._key, flatten_state_dict=flatten_state_dict, flatten_sharded_tensors=flatten_sharded_tensors
        )

    def close(self) -> None:
        """Forget everything."""
        _REMEMBERED.pop(self._key, None)


class _CachingSavePlanner(DefaultSavePlanner):
    def __init__(self, key: str, **options: bool) -> None:
        super().__init__(**options)
        self._key = key

    @property
    def _plans(self) -> _Plans:
        return _REMEMBERED.setdefault(self._key, _Plans())

    def create_local_plan(self) -> SavePlan:
        """See ``SavePlanner``. Every rank."""
        self._structure = _structure_of(self.state_dict, self.mappings, is_coordinator=self.is_coordinator)
        if self._plans.structure == self._structure:
            return SavePlan([], usable=False)
        self._plans.structure = None
        return super().create_local_plan()

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        """See ``SavePlanner``. Rank 0."""
        plans = self._plans
        is_same = len(all_plans) == len(plans.local)
        if plans.metadata is not None and is_same and not any(plan.usable for plan in all_plans):
            return [SavePlan([], usable=False)] * len(all_plans), plans.metadata
        merged = [plan if plan.usable else self._known(rank) for rank, plan in enumerate(all_plans)]
        plans.local, plans.metadata = [], None
        final, metadata = super().create_global_plan(merged)
        plans.local, plans.metadata = merged, metadata
        return final, metadata

    def _known(self, rank: int) -> SavePlan:
        if rank >= len(self._plans.local):
            raise InternalError(f"Rank {rank} says that its plan is known, but rank 0 has none.")
        return self._plans.local[rank]

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        """See ``SavePlanner``. Every rank."""
        plans = self._plans
        if new_plan.usable:
            plans.structure, plans.final = self._structure, new_plan
        if plans.final is None:
            raise InternalError("The plan of the last save is to be used again, but this rank has none.")
        # What the storage writer put into the plan belongs to this save.
        self.plan = dataclasses.replace(plans.final, storage_data=new_plan.storage_data)
        return self.plan


def _structure_of(state: Mapping[str, Any], mappings: Mapping[str, Any], *, is_coordinator: bool) -> _Structure:
    structure: _Structure = [(is_coordinator, list(mappings.items()))]
    structure.extend((name, *_kind_of(value)) for name, value in state.items())
    return structure


def _kind_of(value: Any) -> tuple[Any, ...]:
    if is_checkpointable(value):
        return type(value), value.dtype, tuple(value.shape), chunks_of(value)
    if isinstance(value, DTensor):
        mesh = value.device_mesh
        coordinate = tuple(mesh.get_coordinate() or ())
        layout = (value.placements, tuple(mesh.shape), coordinate, tuple(value.to_local().shape))
        return "DTensor", value.dtype, tuple(value.shape), layout
    if isinstance(value, ShardedTensor):
        shards = [(tuple(s.metadata.shard_offsets), tuple(s.metadata.shard_sizes)) for s in value.local_shards()]
        return "ShardedTensor", value.dtype, tuple(value.size()), shards
    if isinstance(value, Tensor):
        return type(value), value.dtype, tuple(value.shape), value.layout
    return (type(value),)
