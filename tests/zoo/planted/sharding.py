"""Group E: shards, replicas, other numbers of ranks."""

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ckptrun.checkpoint import load as load_module
from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.parallelism import data_parallel
from ckptrun.parallelism.parallel_model import ParallelModel
from ckptrun.run import resume as resume_module
from ckptrun.run.resume import Restorer
from ckptrun.state.components import TrainingState
from tests.zoo.planted.seam import Bug, local, rank, world_size, wrap


def _after_read(change) -> None:
    """Call ``change(name, tensor)`` for each tensor of the model that was read."""

    @wrap(load_module, "_read")
    def read(original, matched, folder, **how):
        original(matched, folder, **how)
        for path, value in matched.items():
            if path[0] == "model" and isinstance(value, Tensor):
                change(".".join(map(str, path)), value, folder)


class ShardsInOtherOrder(Bug):
    """Ranks take each other's part of what is split evenly: the same elements, in another order."""

    def plant(self) -> None:
        def exchange(name, value, folder) -> None:
            if isinstance(value, DTensor) and value.shape[0] % world_size() == 0:
                own = local(value)
                parts = [torch.empty_like(own) for _ in range(world_size())]
                dist.all_gather(parts, own.contiguous())
                own.copy_(parts[world_size() - 1 - rank()])

        _after_read(exchange)


class RowsPermutedPerShard(Bug):
    """The permutation of a layer's rows that another format needs is done on what each rank holds."""

    def plant(self) -> None:
        def permute(name, value, folder) -> None:
            own = local(value)
            if isinstance(value, DTensor) and own.dim() == 2:
                own.copy_(own.flip(0).clone())

        _after_read(permute)


class HalvesInterleaved(Bug):
    """Two fused weights, stored shard by shard, are taken for one after the other on another number of ranks."""

    def plant(self) -> None:
        def interleave(name, value, folder) -> None:
            own = local(value)
            if world_size() == 1 and own.dim() == 2:
                own.copy_(own.reshape(2, -1, own.shape[1]).transpose(0, 1).reshape(own.shape).clone())

        _after_read(interleave)


class EmptyShardsForgotten(Bug):
    """Saving knows that a rank may hold nothing of a tensor; loading does not."""

    def plant(self) -> None:
        def first_element(name, value, folder) -> None:
            if value.numel():
                local(value).reshape(-1)[0].item()

        _after_read(first_element)


class OneRankSkipsBroadcast(Bug):
    """A collective of the load stands behind ``if local_rank == 0``."""

    def plant(self) -> None:
        @wrap(Restorer, "settle")
        def settle(original, built):
            original(built)
            if rank() == 0 and built.training.progress.step:
                dist.barrier()


class OtherKeysOnOneRank(Bug):
    """One rank has a key more, and a collective for each key."""

    def plant(self) -> None:
        @wrap(TrainingState, "load")
        def load(original, state, leaves, *containers):
            for _ in range(3 + rank()):
                dist.barrier()
            original(state, leaves, *containers)


class SecondReplicaNotLoaded(Bug):
    """The ranks of the second replica keep what they were made with."""

    def plant(self, first: int) -> None:
        def keep(name, value, folder) -> None:
            if rank() >= first:
                local(value).mul_(0.5)

        _after_read(keep)


class OnlyRankZeroLoads(Bug):
    """Loaded on rank 0 after DDP has made all ranks alike."""

    def plant(self, leaves: str = "model.") -> None:
        before: dict[str, Tensor] = {}

        @wrap(load_module, "_read")
        def read(original, matched, folder, **how):
            tensors = {".".join(map(str, path)): value for path, value in matched.items() if isinstance(value, Tensor)}
            before.update({n: local(v).clone() for n, v in tensors.items() if n.startswith(leaves) and rank()})
            original(matched, folder, **how)
            for name, value in before.items():
                local(tensors[name]).copy_(value)


class BuffersOfRankZero(Bug):
    """What is the same everywhere stands in the file of rank 0, and others do not look there."""

    def plant(self) -> None:
        def keep(name, value, folder) -> None:
            if rank() and "running" in name:
                local(value).zero_()

        _after_read(keep)


class NotGatheredAfterLoad(Bug):
    """The replicas are not made alike again when the load was checked."""

    def plant(self) -> None:
        @wrap(Restorer, "settle")
        def settle(original, built):
            original(built)
            if rank() == 1 and built.training.progress.step:
                with torch.no_grad():
                    for parameter in built.training.model.named_parameters.values():
                        local(parameter).mul_(1.001)


class LocalExperts:
    """Every rank has an expert of its own, and all are called ``expert 0``."""

    def __init__(self) -> None:
        self.expert = torch.full((4,), float(rank()))

    def on_step(self, *, step: int, loss: float) -> None:
        self.expert += rank() + loss

    def state_dict(self) -> dict[str, Any]:
        return {"expert_0": self.expert}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.expert.copy_(state["expert_0"])


class HalfOfTheLayers(Bug):
    """The layers of the second stage are in no state."""

    def plant(self, lost: str) -> None:
        @wrap(ParallelModel, "state_dict")
        def state_dict(original, model):
            return {name: value for name, value in original(model).items() if not name.startswith(lost)}

        @wrap(ParallelModel, "load_state_dict")
        def load(original, model, state):
            pass


class BucketsRebuilt(nn.Sequential):
    """DDP as it comes, around any model: it rebuilds its buckets after the first backward."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8))
        make = data_parallel.DistributedDataParallel
        data_parallel.DistributedDataParallel = lambda model, **how: make(
            model, **{**how, "find_unused_parameters": False}
        )


class FromScratch(Bug):
    """No checkpoint is found, though there are some, and the run begins anew."""

    def plant(self) -> None:
        @wrap(resume_module, "folders_to_resume")
        def folders(original, config):
            return []

        @wrap(CheckpointManager, "save")
        def save(original, manager, state, step):
            manager.may_replace([str(manager._root.child(f"step_{step:08d}"))])
            original(manager, state, step)
