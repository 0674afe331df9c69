"""A save that repeats the one before is found, unless the ledger says that nothing was trained in between."""

from pathlib import Path
from typing import Any

import pytest

from ckptrun.checkpoint.layout import MANIFEST
from ckptrun.proof.saves_differ import check_saves_differ
from ckptrun.proof.verdict import Status
from tests.proof.saves import live_state, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")


def line(step: int, *, lr: float = 0.1, norm: float = 1.0, skipped: bool = False) -> dict[str, Any]:
    return {"step": step, "learning_rate": lr.hex(), "gradient_norm": norm.hex(), "skipped": skipped}


def lines(**options: Any) -> list[dict[str, Any]]:
    return [line(step, **options) for step in range(1, 9)]


def stale_state(step: int) -> dict[str, Any]:
    """The tensors of step 2, and the counters of another."""
    return {**live_state(step), "model": live_state(2)["model"], "optimizer": live_state(2)["optimizer"]}


@pytest.fixture
def stale(tmp_path: Path) -> list[Path]:
    return [save(tmp_path, 2, live_state(2)), save(tmp_path, 4, stale_state(4)), save(tmp_path, 6, live_state(6))]


def test_checkpoints_that_differ_are_equal_to_what_is_asked_for(tmp_path: Path) -> None:
    folders = [save(tmp_path, step, live_state(step)) for step in (6, 2, 4)]
    check = check_saves_differ(folders, lines())
    assert check is not None
    assert (check.name, check.status, check.covered) == ("saves_differ", Status.equal, {"checkpoints": 3})
    assert "3 checkpoints, of steps 2 to 6" in check.detail


def test_one_checkpoint_is_not_a_pair(tmp_path: Path) -> None:
    assert check_saves_differ([], lines()) is None
    assert check_saves_differ([save(tmp_path, 2, live_state(2))], lines()) is None


def test_a_stale_save_is_found(stale: list[Path]) -> None:
    check = check_saves_differ(stale, lines())
    assert check is not None
    assert check.status is Status.different
    assert "steps 2 and 4, though step 3 changed them" in check.detail
    assert check.first_difference is not None
    assert (check.first_difference["step"], check.first_difference["leaf"]) == (4, "model.embed")
    assert check.first_difference["component"] == "model"


@pytest.mark.parametrize(
    "options", [{"skipped": True}, {"lr": 0.0}, {"norm": 0.0}, {"norm": float("nan")}, {"norm": float("inf")}]
)
def test_where_nothing_was_trained_nothing_is_stale(stale: list[Path], options: Any) -> None:
    check = check_saves_differ(stale, lines(**options))
    assert check is not None
    assert check.status is Status.equal
    assert "nothing was trained from step 2 to 4" in check.detail


def test_one_step_that_trained_is_enough(stale: list[Path]) -> None:
    for step in (3, 4):
        told = [line(other, skipped=other != step) for other in range(1, 9)]
        check = check_saves_differ(stale, told)
        assert check is not None
        assert check.status is Status.different
    # Steps up to the earlier save, and after the later one, have nothing to do with it.
    told = [line(other, skipped=other in (3, 4)) for other in range(1, 9)]
    check = check_saves_differ(stale, told)
    assert check is not None
    assert check.status is Status.equal


def test_a_step_done_again_counts_in_all_its_starts(stale: list[Path]) -> None:
    check = check_saves_differ(stale, [*lines(skipped=True), line(4)])
    assert check is not None
    assert check.status is Status.different


def test_a_ledger_that_does_not_tell_is_not_verified(stale: list[Path]) -> None:
    check = check_saves_differ(stale, [line(3, skipped=True)])
    assert check is not None
    assert check.status is Status.not_verified
    assert "steps 2 and 4" in check.detail


def test_one_other_tensor_is_enough(tmp_path: Path) -> None:
    other = stale_state(4)
    other["optimizer"]["state"]["weight"]["step"] += 1
    folders = [save(tmp_path, 2, live_state(2)), save(tmp_path, 4, other)]
    check = check_saves_differ(folders, lines())
    assert check is not None
    assert check.status is Status.equal


def test_state_that_came_to_be_in_between_is_another(tmp_path: Path) -> None:
    fresh = live_state(2)
    fresh["optimizer"] = {"state": {}}
    folders = [save(tmp_path, 0, fresh), save(tmp_path, 2, live_state(2))]
    check = check_saves_differ(folders, lines())
    assert check is not None
    assert check.status is Status.equal


def test_leaves_without_digests_are_not_verified(tmp_path: Path) -> None:
    folders = [save(tmp_path, step, stale_state(step), live={"progress": {"step": step}}) for step in (2, 4)]
    check = check_saves_differ(folders, lines())
    assert check is not None
    assert check.status is Status.not_verified
    assert "lack digests" in check.detail


def test_a_checkpoint_that_cannot_be_trusted_is_left_out(stale: list[Path]) -> None:
    raw = bytearray((stale[1] / MANIFEST).read_bytes())
    raw[300] ^= 1
    (stale[1] / MANIFEST).write_bytes(raw)
    check = check_saves_differ(stale, lines())
    assert check is not None
    assert (check.status, check.covered) == (Status.equal, {"checkpoints": 2})
