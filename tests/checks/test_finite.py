"""From where on a trajectory proves nothing."""

import pytest

from ckptrun.checks.finite import check_finite
from ckptrun.evidence.verdict import Status

NAN, INF = float("nan"), float("inf")


def ledger(*steps: tuple[float, float] | tuple[float, float, bool]):
    lines = []
    for step, (loss, norm, *skipped) in enumerate(steps, 1):
        lines.append({"step": step, "loss": loss.hex(), "gradient_norm": norm.hex(), "skipped": bool(skipped)})
    return lines


@pytest.mark.parametrize(
    ("steps", "first"),
    [
        ([(1.0, 1.0), (0.5, 1.0), (NAN, NAN), (NAN, NAN)], 3),
        ([(1.0, 1.0), (INF, NAN), (NAN, NAN)], 2),
        ([(INF, INF), (INF, INF)], 1),
        # The weights are NaN from step 3 on, and nothing comes after.
        ([(1.0, 1.0), (1.0, 1.0), (1.0, NAN)], 3),
        # A loss that is made finite again hides the same.
        ([(1.0, 1.0), (0.0, NAN), (0.0, NAN)], 2),
        ([(1.0, 1.0), (NAN, NAN, True), (NAN, NAN, True)], 2),
        ([(1.0, 1.0), (NAN, NAN), (1.0, 1.0), (1.0, 1.0), (NAN, 1.0)], 5),
    ],
)
def test_a_run_that_ends_in_nan_proves_nothing_from_there_on(steps, first) -> None:
    (check,) = check_finite(ledger(*steps))
    assert (check.status, check.is_needed) == (Status.not_verified, True)
    assert check.detail.startswith(f"from step {first} on")


@pytest.mark.parametrize(
    "steps",
    [
        [(1.0, 1.0), (0.5, 1.0)],
        # Left out by the scaler, and trained on.
        [(1.0, INF, True), (1.0, NAN, True), (0.5, 1.0)],
        [(1.0, 1.0), (1.0, NAN, True)],
        [(1.0, 1.0), (NAN, NAN, True)],
        # A loss in the middle: what comes after it tells.
        [(1.0, 1.0), (NAN, NAN), (0.5, 1.0)],
        [(1.0, INF), (0.5, INF)],
        [],
    ],
)
def test_a_run_that_goes_on_after_nan_is_held_against_its_reference(steps) -> None:
    assert check_finite(ledger(*steps)) == []
