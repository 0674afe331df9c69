"""Files that do not hold what was live are found: torn, stale, damaged; and planted damage that is not found is, too."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from ckptrun.checks import file_digests
from ckptrun.checks.saved import check_saved
from ckptrun.digest import digest
from ckptrun.engine.layout import MANIFEST
from ckptrun.engine.manifest import read_manifest
from ckptrun.evidence.verdict import Status
from tests.support.bits import flip, random_tensor
from tests.support.run_ranks import run_ranks
from tests.support.saves import FILE, live_state, save

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
]


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [save(tmp_path, step, live_state(step)) for step in (2, 4)]


def begin_of(folder: Path, leaf: str) -> int:
    """Where the bytes of a leaf start in the only shard file."""
    return read_manifest(folder).leaves[leaf].chunks[0].begin


def test_whole_checkpoints_are_equal_and_what_was_covered_is_said(folders: list[Path]) -> None:
    check = check_saved(folders, damaged={})
    assert (check.name, check.status, check.first_difference) == ("saved_equals_live", Status.equal, None)
    leaves = [len(read_manifest(folder).leaves) for folder in folders]
    size = sum(chunk.bytes for f in folders for leaf in read_manifest(f).leaves.values() for chunk in leaf.chunks)
    assert check.covered == {"checkpoints": 2, "leaves": sum(leaves), "bytes": size}
    assert f"{sum(leaves)} leaves, {size:,} bytes in the files of 2 checkpoints (step 2, 4)" in check.detail


def test_a_torn_save_is_found(tmp_path: Path) -> None:
    live = live_state(2)
    torn = copy.deepcopy(live)
    torn["optimizer"]["state"]["weight"]["exp_avg"][1, 2] += 1
    folder = save(tmp_path, 2, torn, live=live)
    check = check_saved([folder], damaged={})
    assert check.status is Status.different
    assert check.first_difference.as_json() == {
        "step": 2,
        "rank": None,
        "component": "optimizer",
        "leaf": "optimizer.state.weight.exp_avg",
        "index": None,
        "expected": digest(live["optimizer"]["state"]["weight"]["exp_avg"]),
        "got": digest(torn["optimizer"]["state"]["weight"]["exp_avg"]),
        "ulp": None,
    }
    assert "step 2: 1 of " in check.detail
    assert "'optimizer.state.weight.exp_avg'" in check.detail


def test_the_tensors_of_an_earlier_save_are_found(tmp_path: Path) -> None:
    stale = {**live_state(2), "model": live_state(1)["model"]}
    check = check_saved([save(tmp_path, 2, stale, live=live_state(2))], damaged={})
    assert check.status is Status.different
    assert "2 of 15 leaves" in check.detail
    assert check.first_difference is not None
    assert check.first_difference.leaf == "model.embed"


@pytest.mark.parametrize("leaf", ["progress.step", "rng.rank_00001.python.1"])
def test_a_plain_value_that_was_not_live_is_found(tmp_path: Path, leaf: str) -> None:
    live, other = live_state(2), live_state(2)
    if leaf.startswith("progress"):
        other["progress"]["step"] = 3
    else:
        other["rng"]["rank_00001"]["python"][1] = 7
    check = check_saved([save(tmp_path, 2, other, live=live)], damaged={})
    assert check.status is Status.different
    assert check.first_difference is not None
    assert check.first_difference.leaf.startswith(leaf.removesuffix(".1"))
    assert check.first_difference.rank == (1 if leaf.startswith("rng") else None)


def test_a_flipped_bit_is_damage_of_the_leaf_that_it_lies_in(folders: list[Path]) -> None:
    flip(folders[1] / FILE, begin_of(folders[1], "model.weight") + 5)
    check = check_saved(folders, damaged={})
    assert check.status is Status.different
    assert check.first_difference is not None
    assert (check.first_difference.step, check.first_difference.leaf) == (4, "model.weight")
    assert (check.first_difference.expected, check.first_difference.got) == (
        digest(live_state(4)["model"]["weight"]),
        "damaged",
    )
    assert "is damaged in leaf 'model.weight'" in check.detail


def _flip(folder: Path) -> None:
    flip(folder / FILE)


def _flip_header(folder: Path) -> None:
    flip(folder / FILE, 100)


def _flip_manifest(folder: Path) -> None:
    flip(folder / MANIFEST, 400)


def _cut(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1])


def _lose(folder: Path) -> None:
    (folder / FILE).unlink()


def _lose_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


@pytest.mark.parametrize("damage", [_flip, _flip_header, _flip_manifest, _cut, _lose, _lose_manifest])
def test_every_kind_of_damage_is_noticed_and_only_where_it_was_planted(folders: list[Path], damage: Any) -> None:
    damage(folders[0])
    found = check_saved(folders, damaged={})
    assert found.status is Status.different
    assert found.first_difference is not None
    assert found.first_difference.step == 2
    committed = folders if damage is not _lose_manifest else folders[1:]
    check = check_saved(committed, damaged={str(folders[0]): "bit_flip on rank 0"})
    assert check.status is Status.equal, check
    assert "bit_flip on rank 0 in step 2 was noticed: " in check.detail
    assert check.covered["checkpoints"] == 1
    # Planted in one, and found in another one.
    wrong = check_saved(committed, damaged={str(folders[1]): "bit_flip on rank 0"})
    assert wrong.status is Status.different


def test_planted_damage_that_is_not_noticed_is_a_difference(folders: list[Path]) -> None:
    check = check_saved(folders, damaged={str(folders[1]): "torn_write on rank 1"})
    assert check.status is Status.different
    assert "step 4: torn_write on rank 1 was not noticed" in check.detail
    assert check.first_difference is not None
    assert (check.first_difference.expected, check.first_difference.got) == ("torn_write on rank 1", "whole")
    assert check.first_difference.component is None


def test_several_damaged_checkpoints_are_counted(folders: list[Path]) -> None:
    for folder in folders:
        _flip(folder)
    assert "2 of 2 checkpoints are not as they should be" in check_saved(folders, damaged={}).detail


def test_nothing_to_compare_is_not_verified(folders: list[Path], tmp_path: Path) -> None:
    assert check_saved([], damaged={}).status is Status.not_verified
    _flip(folders[0])
    assert check_saved(folders[:1], damaged={str(folders[0]): "bit_flip"}).status is Status.not_verified
    gone = tmp_path / "step_00000006"
    assert check_saved([gone], damaged={}).status is Status.not_verified
    assert check_saved([gone], damaged={str(gone): "bit_flip"}).status is Status.not_verified


def test_a_damaged_checkpoint_that_was_removed_as_an_old_one_is_said_and_does_not_decide(folders: list[Path]) -> None:
    shutil.rmtree(folders[0])
    check = check_saved(folders[1:], damaged={str(folders[0]): "bit_flip on rank 1"})
    assert check.status is Status.equal
    assert "bit_flip on rank 1 in step 2 can be noticed no more: " in check.detail
    assert check.covered["checkpoints"] == 1


def test_a_leaf_without_a_digest_is_not_verified(tmp_path: Path) -> None:
    live = live_state(2)
    del live["model"]["weight"]
    folder = save(tmp_path, 2, live_state(2), live=live)
    check = check_saved([folder], damaged={})
    assert check.status is Status.not_verified
    assert "1 of 15 leaves" in check.detail
    assert "'model.weight'" in check.detail
    _flip(folder)
    assert check_saved([folder], damaged={}).status is Status.different


DTYPES = [
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu",
    "float4_e2m1fn_x2 complex32 complex64 complex128 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool",
]


@pytest.mark.parametrize("batch_bytes", [64, 1000, 16 * 2**20])
def test_digests_are_those_of_the_live_tensors_however_files_are_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr(file_digests, "_BATCH_BYTES", batch_bytes)
    names = " ".join(DTYPES).split()
    shapes = [(5, 3, 7), (), (0, 2), (70,), (1, 1, 33)]
    model = {
        f"{name}_{len(shape)}": random_tensor(getattr(torch, name), shape, seed)
        for seed, name in enumerate(names)
        for shape in shapes
    }
    check = check_saved([save(tmp_path, 1, {"model": model})], damaged={})
    assert check.status is Status.equal, check.detail
    assert check.covered["leaves"] == len(model)


def save_on_two_ranks(root: str) -> None:
    rank = torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    state = live_state(3)
    weight, embed = state["model"]["weight"], state["model"]["embed"]
    # 11 rows on 2 ranks: not even.
    state["model"]["embed"] = distribute_tensor(embed, mesh, [Shard(0)])
    state["model"]["weight"] = distribute_tensor(weight, mesh, [Shard(1)])
    state["memory"]["last"] = distribute_tensor(state["memory"]["last"], mesh, [Replicate()])
    state["rng"] = {f"rank_{rank:05d}": state["rng"][f"rank_{rank:05d}"]}
    save(Path(root), 3, state, live={**state, "rng": live_state(3)["rng"]}, no_dist=False)


@pytest.mark.distributed
def test_sharded_leaves_are_put_together(tmp_path: Path) -> None:
    run_ranks(save_on_two_ranks, 2, str(tmp_path))
    folder = tmp_path / "step_00000003"
    check = check_saved([folder], damaged={})
    assert check.status is Status.equal, check.detail
    assert check.covered["leaves"] == 15
    flip(folder / "rank_00001.safetensors")
    assert check_saved([folder], damaged={}).status is Status.different


MEASURE = """
import pathlib, sys
import torch
from ckptrun.checks.saved import check_saved
from ckptrun.digest import digest
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
digest(torch.ones(2000, 1000))
before = peak()
check = check_saved([sys.argv[1]], damaged={})
assert check.status == "equal", check
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_leaves(tmp_path: Path) -> None:
    folder = save(tmp_path, 1, {"model": {"w": torch.rand(5, 7_000_001)}})
    ended = subprocess.run([sys.executable, "-c", MEASURE, folder], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended
    assert int(ended.stdout) < 128 * 2**20
