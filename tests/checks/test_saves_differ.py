"""A save that repeats the one before is found, unless the ledger says that weights and moments had not changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ckptrun.checks.saves_differ import check_saves_differ
from ckptrun.engine.layout import MANIFEST
from ckptrun.evidence.verdict import Status
from tests.support.bits import flip
from tests.support.saves import live_state, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")


def line(step: int, *, weights: str | None, moments: str | None = "m", start: int = 0, **more: Any) -> dict[str, Any]:
    return {"step": step, "start": start, "trained": {"weights": weights, "moments": moments}, **more}


def lines(changing: Sequence[int] = range(1, 9), *, part: str = "weights") -> list[dict[str, Any]]:
    """A ledger in which the steps in ``changing`` have changed weights, or moments."""
    fixed = {"weights": "w", "moments": "m"}
    prints = [f"{part[0]}{sum(other <= step for other in changing)}" for step in range(1, 9)]
    return [line(step, **{**fixed, part: prints[step - 1]}) for step in range(1, 9)]


def stale_state(step: int) -> dict[str, Any]:
    """The tensors of step 2, and the counters of another."""
    return {**live_state(step), "model": live_state(2)["model"], "optimizer": live_state(2)["optimizer"]}


@pytest.fixture
def stale(tmp_path: Path) -> list[Path]:
    return [save(tmp_path, 2, live_state(2)), save(tmp_path, 4, stale_state(4)), save(tmp_path, 6, live_state(6))]


def test_checkpoints_that_differ_are_equal_to_what_is_asked_for(tmp_path: Path) -> None:
    folders = [save(tmp_path, step, live_state(step)) for step in (6, 2, 4)]
    check = check_saves_differ(folders, [lines()])
    assert check is not None
    assert (check.name, check.status, check.covered) == ("saves_differ", Status.equal, {"checkpoints": 3})
    assert "3 checkpoints, of steps 2 to 6" in check.detail


def test_one_checkpoint_is_not_a_pair(tmp_path: Path) -> None:
    assert check_saves_differ([], [lines()]) is None
    assert check_saves_differ([save(tmp_path, 2, live_state(2))], [lines()]) is None


def test_a_stale_save_is_found(stale: list[Path]) -> None:
    check = check_saves_differ(stale, [lines()])
    assert check is not None
    assert check.status is Status.different
    assert "steps 2 and 4, though step 3 changed the weights" in check.detail
    assert check.first_difference is not None
    assert (check.first_difference.step, check.first_difference.leaf) == (4, "model.embed")
    assert check.first_difference.component == "model"


@pytest.mark.parametrize(("part", "leaf"), [("weights", "model.embed"), ("moments", "optimizer.state.weight.exp_avg")])
def test_each_of_weights_and_moments_that_changed_and_was_not_saved_is_found(
    stale: list[Path], part: str, leaf: str
) -> None:
    check = check_saves_differ(stale, [lines([4], part=part)])
    assert check is not None
    assert check.status is Status.different
    assert f"steps 2 and 4, though step 4 changed the {part}" in check.detail
    assert check.first_difference is not None
    assert (check.first_difference.step, check.first_difference.leaf) == (4, leaf)


def test_a_stale_model_is_found_beside_an_optimizer_that_is_not(tmp_path: Path) -> None:
    state = {**live_state(4), "model": live_state(2)["model"]}
    check = check_saves_differ([save(tmp_path, 2, live_state(2)), save(tmp_path, 4, state)], [lines([3])])
    assert check is not None
    assert check.status is Status.different
    assert check.first_difference is not None
    assert check.first_difference.component == "model"


def test_what_no_step_in_between_has_changed_is_not_stale(stale: list[Path]) -> None:
    # Steps up to the earlier save, and after the later one, have nothing to do with it.
    check = check_saves_differ(stale, [lines([1, 2, 5, 6, 7, 8])])
    assert check is not None
    assert check.status is Status.equal
    assert "weights and moments did not change from step 2 to 4" in check.detail


def test_bits_that_went_and_came_back_are_the_same(stale: list[Path]) -> None:
    told = [line(step, weights="other" if step == 3 else "w") for step in range(1, 5)]
    check = check_saves_differ(stale[:2], [told])
    assert check is not None
    assert check.status is Status.equal


def test_a_change_on_one_rank_of_several_is_a_change(stale: list[Path]) -> None:
    check = check_saves_differ(stale, [lines([]), lines([4])])
    assert check is not None
    assert check.status is Status.different


def test_a_start_is_compared_with_what_it_began_with(stale: list[Path]) -> None:
    """On another mesh a rank holds another part: its fingerprint is another one, and no weight has changed."""
    first = [line(step, weights="of two ranks") for step in (1, 2)]
    held = [line(step, weights="of three ranks", start=1) for step in (3, 4)]
    held[0]["trained_before"] = {"weights": "of three ranks", "moments": "m"}
    check = check_saves_differ(stale[:2], [[*first, *held]])
    assert check is not None
    assert check.status is Status.equal
    held[0]["trained_before"] = {"weights": "another", "moments": "m"}
    check = check_saves_differ(stale[:2], [[*first, *held]])
    assert check is not None
    assert check.status is Status.different


@pytest.mark.parametrize(
    "told",
    [
        [],
        [line(2, weights="w")],
        [line(2, weights="w"), line(4, weights=None)],
        [{"step": s, "start": 0} for s in (2, 4)],
    ],
)
def test_a_ledger_that_does_not_tell_is_not_verified(stale: list[Path], told: list[dict[str, Any]]) -> None:
    check = check_saves_differ(stale[:2], [told])
    assert check is not None
    assert check.status is Status.not_verified
    assert "steps 2 and 4" in check.detail
    assert "does not tell" in check.detail


def test_one_other_tensor_of_each_is_enough(tmp_path: Path) -> None:
    other = stale_state(4)
    other["model"]["embed"] += 1
    other["optimizer"]["state"]["weight"]["step"] += 1
    folders = [save(tmp_path, 2, live_state(2)), save(tmp_path, 4, other)]
    check = check_saves_differ(folders, [lines()])
    assert check is not None
    assert check.status is Status.equal


def test_leaves_that_are_exempt_do_not_count(stale: list[Path]) -> None:
    check = check_saves_differ(stale[:2], [lines([3])], counts=lambda leaf: not leaf.startswith("model."))
    assert check is not None
    assert check.status is Status.equal


def test_state_that_came_to_be_in_between_is_another(tmp_path: Path) -> None:
    fresh = live_state(2)
    fresh["optimizer"] = {"state": {}}
    folders = [save(tmp_path, 0, fresh), save(tmp_path, 2, live_state(2))]
    check = check_saves_differ(folders, [lines()])
    assert check is not None
    assert check.status is Status.equal


def test_leaves_without_digests_are_not_verified(tmp_path: Path) -> None:
    folders = [save(tmp_path, step, stale_state(step), live={"progress": {"step": step}}) for step in (2, 4)]
    check = check_saves_differ(folders, [lines()])
    assert check is not None
    assert check.status is Status.not_verified
    assert "lack digests" in check.detail


def test_a_checkpoint_that_cannot_be_trusted_is_left_out(stale: list[Path]) -> None:
    flip(stale[1] / MANIFEST, 300)
    check = check_saves_differ(stale, [lines()])
    assert check is not None
    assert (check.status, check.covered) == (Status.equal, {"checkpoints": 2})
