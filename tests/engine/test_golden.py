"""What format 1 was once written as loads for ever: by the package, on other meshes, and by the reader of docs/format.md."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ckptrun import ShardReader
from ckptrun.engine.manifest import read_manifest
from ckptrun.engine.read_state import read_state
from tests.engine.golden import DTYPES, ONE_RANK, TWO_RANKS, VALUES, tensors
from tests.support.bits import all_bits, bits
from tests.support.run_ranks import run_ranks


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("folder", [ONE_RANK, TWO_RANKS], ids=lambda folder: folder.name)
def test_every_leaf_comes_back_bit_for_bit(folder: Path) -> None:
    state = read_state(folder)
    assert len(tensors()) == len(DTYPES) + 5
    assert all_bits(state["tensors"]) == all_bits(tensors())
    assert all_bits(state["values"]) == all_bits(VALUES)


def test_what_a_manifest_says_of_the_save_comes_back() -> None:
    one, two = read_manifest(ONE_RANK), read_manifest(TWO_RANKS)
    assert (one.world_size, two.world_size) == (1, 2)
    assert one.run == two.run == {"step": 20}
    assert one.shared == (("tied.a", "tied.b"),)
    assert [two.leaves[f"rank_{rank:05d}.own"].value for rank in range(2)] == [0, 1]


def _into_another_mesh(folder: Path) -> list[Any]:
    mesh = init_device_mesh("cpu", (3,))
    whole = {name: tensor for name, tensor in tensors().items() if tensor.dtype is torch.float32 and tensor.dim()}
    targets = {name: distribute_tensor(torch.zeros_like(tensor), mesh, [Shard(0)]) for name, tensor in whole.items()}
    dcp.load({"tensors": targets}, storage_reader=ShardReader(folder))
    expected = {name: distribute_tensor(tensor, mesh, [Shard(0)]).to_local() for name, tensor in whole.items()}
    assert dist.get_world_size() == 3
    return [all_bits(targets) == all_bits(expected), len(targets)]


@pytest.mark.distributed
@pytest.mark.parametrize("folder", [ONE_RANK, TWO_RANKS], ids=lambda folder: folder.name)
def test_they_load_into_a_mesh_of_three(folder: Path) -> None:
    assert run_ranks(_into_another_mesh, 3, folder) == [[True, 3]] * 3


@pytest.mark.parametrize("folder", [ONE_RANK, TWO_RANKS], ids=lambda folder: folder.name)
def test_the_reader_of_the_page_reads_them(folder: Path, page: dict[str, Any]) -> None:
    found = page["read"](folder)
    for name, tensor in tensors().items():
        dtype, shape, raw = found[f"tensors.{name}"]
        assert (dtype, shape, raw) == (str(tensor.dtype).removeprefix("torch."), *_rest(tensor)), name


def _rest(tensor: Tensor) -> tuple[tuple[int, ...], bytes]:
    return bits(tensor)[1:]
