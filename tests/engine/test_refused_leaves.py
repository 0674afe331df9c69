"""Leaves that cannot be saved: refused by name, on every rank alike."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

from ckptrun.digest import digest
from ckptrun.engine.commit import list_committed
from ckptrun.engine.staging import HostStager
from ckptrun.engine.storage import ShardReader, ShardWriter
from ckptrun.errors import UnsupportedLeafError
from tests.support.run_ranks import run_ranks


def given_up(size: int = 0) -> Tensor:
    """A tensor whose storage is smaller than its elements need."""
    tensor = torch.arange(1000.0)
    tensor.untyped_storage().resize_(size)
    return tensor


GIVEN_UP = (
    "Leaf 'w' is a tensor whose memory was given up: its storage holds {} bytes, its elements reach to byte 4000."
)


@pytest.mark.parametrize("size", [0, 2000])
def test_memory_that_is_not_a_tensors_own_is_never_read_nor_written(size: int, tmp_path: Path) -> None:
    says = GIVEN_UP.format(size)
    with pytest.raises(UnsupportedLeafError, match="was given up"):
        digest(given_up(size))
    with pytest.raises(dcp.CheckpointException, match=says):
        dcp.save({"w": given_up(size)}, storage_writer=ShardWriter(tmp_path / "save"), no_dist=True)
    with pytest.raises(UnsupportedLeafError, match=says):
        HostStager().stage({"w": given_up(size)})
    with pytest.raises(dcp.CheckpointException, match="given up"):
        dcp.save({"w": (given_up(size),)}, storage_writer=ShardWriter(tmp_path / "in_tuple"), no_dist=True)
    dcp.save({"w": torch.arange(1000.0)}, storage_writer=ShardWriter(tmp_path / "whole"), no_dist=True)
    with pytest.raises(dcp.CheckpointException, match=says):
        dcp.load({"w": given_up(size)}, storage_reader=ShardReader(tmp_path / "whole"), no_dist=True)
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_a_part_of_a_larger_memory_is_a_tensors_own() -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    for part in (whole[1:, 1], whole.t()[::2], whole[3:], whole.expand(2, 3, 4), torch.tensor(1.0)):
        staged = HostStager().stage({"part": part})
        assert torch.equal(staged["part"], part)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: torch.zeros(2, dtype=torch.uint8).view(torch.uint4), "Leaf 'bad' is a tensor of torch.uint4"),
        (lambda: torch.nn.LazyLinear(3).weight, "Leaf 'bad' is a"),
    ],
)
def test_what_torch_cannot_copy_is_named(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UnsupportedLeafError, match=words):
        HostStager().stage({"bad": make()})


BAD = {
    "meta": lambda: torch.empty(2, device="meta"),
    "lock": threading.Lock,
    "local function": lambda: lambda: None,
    "given up": given_up,
}


def save_with_one_bad_leaf(folder: Path, kinds: list[AsyncCheckpointerType]) -> dict[str, str]:
    """Rank 1 alone has a leaf that cannot be saved; return what each rank is told."""
    told = {}
    for kind in kinds:
        for name, make in BAD.items():
            state = {"good": torch.ones(3)} | ({"bad": make()} if dist.get_rank() else {})
            saving = dcp.async_save(
                state,
                storage_writer=ShardWriter(folder / "checkpoint"),
                async_stager=HostStager(),
                async_checkpointer_type=kind,
            )
            error = saving.exception(60)
            told[f"{kind.name} {name}"] = str(error)
    return told


@pytest.mark.distributed
@pytest.mark.parametrize(
    "kind", [AsyncCheckpointerType.THREAD, pytest.param(AsyncCheckpointerType.PROCESS, marks=pytest.mark.slow)]
)
def test_a_leaf_that_one_rank_cannot_copy_is_told_to_all(kind: AsyncCheckpointerType, tmp_path: Path) -> None:
    ranks = run_ranks(save_with_one_bad_leaf, 2, tmp_path, [kind], fresh=kind is AsyncCheckpointerType.PROCESS)
    for told in ranks:
        assert len(told) == len(BAD)
        for name, error in told.items():
            assert "Leaf 'bad' is" in error, (name, error)
    assert list_committed(tmp_path) == []
    assert not (tmp_path / "checkpoint").exists()
