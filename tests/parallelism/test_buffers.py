"""BatchNorm's averages at step boundaries."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from ckptrun.parallelism.buffers import BufferSync
from tests.parallelism.training import DATA_KINDS, Recipe, Run, bits
from tests.support.run_ranks import run_ranks

pytestmark = pytest.mark.distributed

_VARIANTS = {"plain": {}, "accumulate": {"accumulate": 2}, "recompute": {"activation_checkpointing": True}}


def _buffers(kinds: tuple[str, ...]) -> dict:
    return {
        (kind, variant): _buffers_of(Recipe(kind=kind, model="cnn", **changes))
        for kind in kinds
        for variant, changes in _VARIANTS.items()
    }


def _buffers_of(recipe: Recipe) -> dict:
    run = Run(recipe)
    alone = Run(recipe.but(kind="none"))
    for step in range(2):
        run.backward(step)
        alone.backward(step)
    return {"bits": _bits(run), "alone": _bits(alone)}


def _bits(run: Run) -> dict[str, bytes]:
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    return {name: bits(tensor) for name, tensor in run.model.state_dict().items() if name.endswith(buffers)}


@pytest.fixture(scope="module")
def buffers():
    return run_ranks(_buffers, 4, DATA_KINDS[1:], timeout_s=240)


@pytest.mark.parametrize("kind", DATA_KINDS[1:])
@pytest.mark.parametrize("variant", _VARIANTS)
def test_all_ranks_take_the_averages_of_data_parallel_rank_zero(buffers, kind, variant):
    """Rank 0's are those of one process that saw rank 0's samples alone."""
    assert len(buffers[0][kind, variant]["bits"]) == 6
    for rank in buffers:
        assert rank[kind, variant]["bits"] == buffers[0][kind, variant]["alone"]


@pytest.mark.parametrize("kind", DATA_KINDS[1:])
def test_recomputed_blocks_count_each_batch_once(buffers, kind):
    assert buffers[0][kind, "recompute"]["bits"] == buffers[0][kind, "plain"]["bits"]


class Mixed(nn.Module):
    """Buffers of several dtypes, one that forward replaces, one of no elements."""

    def __init__(self, value: int):
        super().__init__()
        self.register_buffer("flag", torch.tensor(value % 2 == 0))
        self.register_buffer("count", torch.tensor(value, dtype=torch.int64), persistent=False)
        self.register_buffer("narrow", torch.full((3,), value, dtype=torch.bfloat16))
        self.register_buffer("nothing", torch.empty(0, 2))

    def forward(self) -> None:
        self.count = self.count + 1


def _mixed() -> list:
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    model = Mixed(dist.get_rank())
    sync = BufferSync(model, mesh)
    model()
    sync.sync()
    return [model.flag.item(), model.count.item(), model.narrow.tolist()]


def test_buffers_of_any_dtype_are_sent_also_when_forward_replaced_them():
    assert run_ranks(_mixed, 4) == [[True, 1, [0.0, 0.0, 0.0]]] * 4


def _apart() -> int:
    mesh = dist.device_mesh.init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    model = Mixed(dist.get_rank())
    BufferSync(model, mesh).sync()
    return model.count.item()


def test_tensor_parallel_ranks_keep_buffers_of_their_own():
    assert run_ranks(_apart, 4) == [0, 1, 0, 1]
