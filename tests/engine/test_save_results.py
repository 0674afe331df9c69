"""Tensors of different shape or dtype under one name are refused when they are saved, before a byte is written."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

from ckptrun import PlanCache, ShardWriter
from ckptrun.engine.save_results import require_same_kinds
from ckptrun.errors import CheckpointError
from tests.support.run_ranks import run_ranks


def _try_all(folder: Path) -> list[Any]:
    rank = dist.get_rank()
    same = {"w": torch.ones(2), "n": rank}
    states = [
        {"of": {"mine": torch.ones(3 + rank)}, "w": torch.ones(2)},
        {"of": {"mine": torch.ones(3, dtype=torch.float64 if rank else torch.float32)}},
        {"of": {"mine": torch.ones(3 + rank)}, "w": torch.ones(2)},
    ]
    planners = [DefaultSavePlanner(), PlanCache().planner(), DefaultSavePlanner(enable_plan_caching=True)]
    found = []
    for number, (state, planner) in enumerate(zip(states, planners, strict=True)):
        try:
            dcp.save(state, storage_writer=ShardWriter(folder / str(number)), planner=planner)
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            found.append((type(cause).__name__, str(cause)))
    dcp.save(same, storage_writer=ShardWriter(folder / "same"))
    dist.barrier()
    return [found, sorted(path.name for path in folder.iterdir())]


@pytest.mark.distributed
def test_ranks_that_disagree_save_nothing_and_are_told_which_leaf(tmp_path: Path) -> None:
    for found, folders in run_ranks(_try_all, 2, tmp_path):
        assert [kind for kind, _ in found] == ["CheckpointError"] * 3
        for _, text in found:
            assert "'of.mine' is float32 of shape (3,) on rank 0" in text
        assert "float64 of shape (3,) on rank 1" in found[1][1]
        assert "float32 of shape (4,) on rank 1" in found[2][1]
        assert folders == ["same"]


def test_ranks_with_nothing_new_to_say_agree() -> None:
    require_same_kinds([None, {"a": "float32 of shape (1,)"}, {"b": "bool of shape ()"}, None])
    with pytest.raises(CheckpointError, match="'a' is x on rank 1 but y on rank 3"):
        require_same_kinds([None, {"a": "x"}, {}, {"a": "y"}])
