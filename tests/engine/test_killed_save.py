"""A rank is really killed in the middle of a save: earlier checkpoints load, what is left is known and removed."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ckptrun.engine.commit import list_committed, list_leftovers, remove_leftovers
from ckptrun.engine.layout import step_folder
from ckptrun.engine.read_state import read_state
from ckptrun.engine.staging import HostStager
from ckptrun.engine.storage import ShardWriter
from tests.support.killed_ranks import run_until_killed
from tests.support.run_ranks import run_ranks
from tests.support.storage_backends import KillAt

pytestmark = pytest.mark.distributed


def state(value: float) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {"w": distribute_tensor(torch.full((100, 50), value), mesh, [Shard(0)]), "value": value}


def save_and_die(root: Path, step: int, point: str, rank: int, in_background: bool) -> None:
    """Save steps 1 and 2, then ``step``, during which ``rank`` dies."""
    for earlier in (1, 2):
        dcp.save(state(earlier), storage_writer=ShardWriter(step_folder(root, earlier)))
    writer = ShardWriter(step_folder(root, step), reached=KillAt(point, rank), overwrite=step == 2)
    if in_background:
        dcp.async_save(state(9.0), storage_writer=writer, async_stager=HostStager()).result()
    else:
        dcp.save(state(9.0), storage_writer=writer)


def save_again(root: Path) -> list[int]:
    dcp.save(state(3.0), storage_writer=ShardWriter(step_folder(root, 3)))
    return list_committed(root)


def values_in(root: Path) -> dict[int, tuple[float, list[float]]]:
    found = {step: read_state(step_folder(root, step)) for step in list_committed(root)}
    return {step: (state["value"], state["w"].unique().tolist()) for step, state in found.items()}


EARLIER = {1: (1.0, [1.0]), 2: (2.0, [2.0])}


@pytest.mark.parametrize(
    ("point", "rank", "in_background"),
    [
        ("before_write", 1, False),
        ("writing", 1, False),
        ("writing", 0, True),
        ("after_write", 1, False),
        ("before_manifest", 0, False),
        ("before_commit", 0, True),
    ],
)
def test_a_save_killed_before_its_commit_leaves_earlier_checkpoints_and_a_leftover(
    point: str, rank: int, in_background: bool, tmp_path: Path
) -> None:
    codes = run_until_killed(save_and_die, 2, tmp_path, 3, point, rank, in_background)
    assert codes[rank] == -9
    assert values_in(tmp_path) == EARLIER
    (leftover,) = list_leftovers(tmp_path)
    assert leftover.startswith("step_00000003.tmp-")
    assert remove_leftovers(tmp_path) == [leftover]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_after_a_killed_save_the_same_step_is_saved_again(tmp_path: Path) -> None:
    run_until_killed(save_and_die, 2, tmp_path, 3, "writing", 1, False)
    assert run_ranks(save_again, 2, tmp_path) == [[1, 2, 3]] * 2
    assert values_in(tmp_path) == {**EARLIER, 3: (3.0, [3.0])}
    assert len(remove_leftovers(tmp_path)) == 1
    assert list_committed(tmp_path) == [1, 2, 3]


def test_a_save_killed_after_its_commit_is_a_checkpoint(tmp_path: Path) -> None:
    run_until_killed(save_and_die, 2, tmp_path, 3, "after_commit", 0, False)
    assert values_in(tmp_path) == {**EARLIER, 3: (9.0, [9.0])}
    (lock,) = remove_leftovers(tmp_path)
    assert lock.endswith(".lock")
    assert values_in(tmp_path) == {**EARLIER, 3: (9.0, [9.0])}


@pytest.mark.parametrize("point", ["writing", "before_commit", "during_swap"])
def test_a_killed_overwrite_leaves_the_checkpoint_that_was_there(point: str, tmp_path: Path) -> None:
    run_until_killed(save_and_die, 2, tmp_path, 2, point, 0, False)
    remove_leftovers(tmp_path)
    assert values_in(tmp_path) == EARLIER
    assert list_leftovers(tmp_path) == []
