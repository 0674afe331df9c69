"""Two checkpoints are compared leaf by leaf whatever their sharding, and the first difference is named to the bit."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ckptrun.checks import checkpoints
from ckptrun.checks.checkpoints import compare_checkpoints
from ckptrun.checks.component_order import BLAME_ORDER, nearness
from ckptrun.config.run import COMPONENTS
from ckptrun.evidence.verdict import Check, Status
from tests.support.bits import flip
from tests.support.run_ranks import run_ranks
from tests.support.saves import FILE, live_state, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")


def compared(tmp_path: Path, other: dict[str, Any], **options: Any) -> Check:
    expected = save(tmp_path / "expected", 4, live_state(4))
    return compare_checkpoints(expected, save(tmp_path / "got", 4, other, **options), step=4)


def test_equal_states_are_equal_and_components_are_counted(tmp_path: Path) -> None:
    check = compared(tmp_path, live_state(4))
    assert (check.name, check.status, check.first_difference) == ("final_state", Status.equal, None)
    assert check.covered == {"leaves": 15, "components": 7}
    assert "(model 3, optimizer 3, schedule 1, memory 1, data 2, rng 4, progress 1)" in check.detail


def test_an_element_is_named_with_bits_and_distance(tmp_path: Path) -> None:
    other = live_state(4)
    other["optimizer"]["state"]["weight"]["exp_avg"][1, 2:] = 4.0000005
    check = compared(tmp_path, other)
    assert check.status is Status.different
    assert check.first_difference.as_json() == {
        "step": 4,
        "rank": None,
        "component": "optimizer",
        "leaf": "optimizer.state.weight.exp_avg",
        "index": [1, 2],
        "entry": None,
        "expected": "4.0",
        "got": "4.0000005",
        "ulp": 1,
        "expected_bits": "0x40800000",
        "got_bits": "0x40800001",
    }
    assert "1 of 15 leaves" in check.detail
    assert "(optimizer 1 of " in check.detail
    assert "at [1, 2] expected 4.0 (0x40800000), got 4.0000005 (0x40800001), 1 ULP apart" in check.detail


@pytest.mark.parametrize("slab_bytes", [4, 20, 1000])
def test_slabs_do_not_hide_or_move_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slab_bytes: int
) -> None:
    monkeypatch.setattr(checkpoints, "_SLAB_BYTES", slab_bytes)
    other = live_state(4)
    other["model"]["weight"][2, 1] = -1
    first = compared(tmp_path, other).first_difference
    assert first is not None
    assert (first.leaf, first.index, first.got) == ("model.weight", [2, 1], "-1.0")


def changed_everywhere() -> dict[str, Any]:
    other = live_state(5)
    other["scaler"] = {"scale": 1.0}
    other["ema"] = {"weight": torch.ones(2)}
    return other


def test_the_component_nearest_to_a_wrong_result_comes_first(tmp_path: Path) -> None:
    """Taking the blamed component away brings out the next one."""
    expected, other = live_state(4), changed_everywhere()
    expected |= {"scaler": {"scale": 2.0}, "ema": {"weight": torch.zeros(2)}}
    blamed = []
    for number in range(9):
        one = save(tmp_path / str(number), 4, expected)
        check = compare_checkpoints(one, save(tmp_path / f"{number} got", 4, other), step=4)
        assert check.first_difference is not None
        blamed.append(check.first_difference.component)
        other[blamed[-1]] = expected[blamed[-1]]
    assert blamed == ["memory" if name == "*" else name for name in BLAME_ORDER]
    assert nearness("anything") == nearness("memory")
    assert sorted(BLAME_ORDER) == sorted([*COMPONENTS, "*"])


def test_counts_are_told_per_component(tmp_path: Path) -> None:
    other = live_state(4)
    other["model"]["weight"][0, 0] = 9
    other["rng"]["rank_00001"]["torch"][3] = 9
    other["progress"]["step"] = 9
    check = compared(tmp_path, other)
    assert "3 of 15 leaves" in check.detail
    assert "(model 1 of 3, rng 1 of 4, progress 1 of 1)" in check.detail


def test_the_leaf_of_a_rank_carries_its_rank(tmp_path: Path) -> None:
    other = live_state(4)
    other["rng"]["rank_00001"]["torch"][3] = 9
    check = compared(tmp_path, other)
    assert check.first_difference is not None
    assert (check.first_difference.rank, check.first_difference.index) == (1, [3])
    assert "'rng.rank_00001.torch' of rank 1: at [3] expected 5" in check.detail


def test_a_plain_value_is_named_down_to_its_entry(tmp_path: Path) -> None:
    other = live_state(4)
    other["optimizer"]["param_groups"][0]["lr"] = 4.1000000000000005
    first = compared(tmp_path, other).first_difference
    assert first is not None
    assert first.leaf.startswith("optimizer.param_groups")
    assert (first.index, first.expected, first.got, first.ulp) == (None, 4.1, 4.1000000000000005, 1)
    assert first.details["expected_bits"] == "0x4010666666666666"


def _without_weight(state: dict[str, Any]) -> None:
    del state["model"]["weight"]


def _with_another(state: dict[str, Any]) -> None:
    state["model"]["more"] = torch.ones(1)


def _with_another_dtype(state: dict[str, Any]) -> None:
    state["model"]["weight"] = state["model"]["weight"].double()


def _with_another_shape(state: dict[str, Any]) -> None:
    state["model"]["weight"] = state["model"]["weight"].view(4, 3)


def _as_plain_value(state: dict[str, Any]) -> None:
    state["model"]["weight"] = 3


@pytest.mark.parametrize(
    ("change", "leaf", "expected", "got"),
    [
        (_without_weight, "model.weight", "float32 [3, 4]", "absent"),
        (_with_another, "model.more", "absent", "float32 [1]"),
        (_with_another_dtype, "model.weight", "float32 [3, 4]", "float64 [3, 4]"),
        (_with_another_shape, "model.weight", "float32 [3, 4]", "float32 [4, 3]"),
        (_as_plain_value, "model.weight", "float32 [3, 4]", "a int"),
    ],
)
def test_leaves_that_only_one_has_or_of_another_kind(
    tmp_path: Path, change: Any, leaf: str, expected: str, got: str
) -> None:
    other = live_state(4)
    change(other)
    check = compared(tmp_path, other)
    assert check.status is Status.different
    assert check.first_difference is not None
    found = {key: check.first_difference.as_json()[key] for key in ("leaf", "expected", "got", "index", "ulp")}
    assert found == {"leaf": leaf, "expected": expected, "got": got, "index": None, "ulp": None}


def test_leaves_without_a_digest_are_compared_by_their_bytes(tmp_path: Path) -> None:
    other = live_state(4)
    assert compared(tmp_path / "equal", other, live={}).status is Status.equal
    other["model"]["weight"][2, 1] = -1
    check = compared(tmp_path, other, live={})
    assert check.first_difference is not None
    assert check.first_difference.index == [2, 1]


def test_digests_that_the_files_do_not_bear_out_are_still_a_difference(tmp_path: Path) -> None:
    live = copy.deepcopy(live_state(4))
    live["model"]["weight"][0, 0] = 77
    check = compared(tmp_path, live_state(4), live=live)
    assert check.status is Status.different
    assert "the bits in the files do not" in check.detail
    assert check.first_difference is not None
    assert len(check.first_difference.expected) == 32


def test_a_damaged_file_leaves_the_digests_to_tell(tmp_path: Path) -> None:
    other = live_state(4)
    other["model"]["weight"] += 1
    expected, got = save(tmp_path / "a", 4, live_state(4)), save(tmp_path / "b", 4, other)
    flip(got / FILE, 100)
    check = compare_checkpoints(expected, got, step=4)
    assert check.status is Status.different
    assert "the digests differ; Shard file" in check.detail
    assert check.first_difference is not None
    assert (check.first_difference.leaf, len(check.first_difference.got)) == ("model.weight", 32)


def test_what_cannot_be_read_is_not_verified(tmp_path: Path) -> None:
    folder = save(tmp_path, 4, live_state(4))
    check = compare_checkpoints(tmp_path / "step_00000009", folder, step=4, name="second_resume")
    assert (check.name, check.status) == ("second_resume", Status.not_verified)
    assert "is not a checkpoint" in check.detail
    bare = save(tmp_path / "bare", 4, live_state(4), live={})
    flip(bare / FILE, 100)
    check = compare_checkpoints(folder, bare, step=4)
    assert check.status is Status.not_verified
    assert "has no digest and cannot be read" in check.detail


def save_on_two_ranks(root: str) -> None:
    rank = torch.distributed.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    for name, state in (("same", live_state(4)), ("other", live_state(4))):
        if name == "other":
            state["model"]["weight"][1, 3] = -1
        weight, embed = state["model"]["weight"], state["model"]["embed"]
        state["model"] |= {
            "embed": distribute_tensor(embed, mesh, [Shard(0)]),
            "weight": distribute_tensor(weight, mesh, [Shard(1)]),
        }
        streams = state["rng"]
        state["rng"] = {f"rank_{rank:05d}": {"python": [0, rank], "torch": torch.zeros(16)}}
        save(Path(root) / name, 4, state, live={**state, "rng": streams}, no_dist=False)


@pytest.mark.distributed
def test_another_sharding_of_the_same_values_is_equal(tmp_path: Path) -> None:
    """Streams of single ranks are not what another number of ranks goes on with."""
    run_ranks(save_on_two_ranks, 2, str(tmp_path))
    alone = save(tmp_path, 4, live_state(4))
    check = compare_checkpoints(alone, tmp_path / "same" / "step_00000004", step=4)
    assert check.status is Status.equal, check.detail
    assert "leaves of single ranks are left out" in check.detail
    check = compare_checkpoints(alone, tmp_path / "other" / "step_00000004", step=4)
    assert check.first_difference is not None
    assert (check.first_difference.leaf, check.first_difference.index) == ("model.weight", [1, 3])
