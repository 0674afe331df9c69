"""A control with nothing to leave out says so; one that should have shown something and did not is vacuous."""

from typing import Any

import pytest

from ckptrun.checks.whole_runs import check_controls, idle_controls
from ckptrun.config.proof import ProofConfig
from ckptrun.evidence.starts import Start
from ckptrun.evidence.verdict import Status
from ckptrun.run.controls import idle_because


def line(
    step: int, *, stream: str = "s", rate: str = "0x1p-3", weights: str | None = None, skipped: bool = False
) -> Any:
    trained = {} if weights is None else {"trained": {"weights": weights, "moments": "m"}}
    rng = {"torch_cpu": stream, "python": "p"}
    return {"step": step, "rng": rng, "learning_rate": rate, "skipped": skipped, **trained}


def control(component: str, *, found: bool, exercised: bool = True) -> dict[str, Any]:
    return {"component": component, "is_found": found, "is_exercised": exercised, "detail": f"what of {component}"}


@pytest.mark.parametrize(
    ("component", "still", "moved"),
    [
        ("rng", {}, {"stream": "t"}),
        ("schedule", {}, {"rate": "0x1p-4"}),
        ("scaler", {}, {"skipped": True}),
        ("optimizer", {"weights": "w"}, {"weights": "v"}),
    ],
)
def test_the_ledger_tells_whether_there_was_anything_to_leave_out(component, still, moved) -> None:
    assert "after step 3" in str(idle_because(component, [line(step, **still) for step in (3, 4, 5)]))
    assert idle_because(component, [line(3, **still), line(4, **still), line(5, **moved)]) is None


def test_where_the_ledger_does_not_tell_nothing_is_excused() -> None:
    assert idle_because("rng", [line(3)]) is None
    assert idle_because("optimizer", [line(3), line(4)]) is None
    assert idle_because("model", [line(3), line(4)]) is None


def test_a_draw_in_the_first_step_after_the_checkpoint_is_a_draw() -> None:
    assert idle_because("rng", [line(3, stream="before"), line(4), line(5)]) is None


def test_what_is_not_exercised_does_not_decide() -> None:
    starts = [
        Start(
            index=0,
            ended="end",
            controls=[control("rng", found=False, exercised=False), control("optimizer", found=True)],
        )
    ]
    check = check_controls(starts, asked=True)
    assert (check.status, check.detail, check.covered) == (Status.equal, "what of optimizer", {"controls": 1})
    assert idle_controls(starts) == ["control of rng: what of rng"]


def test_all_of_them_idle_prove_nothing_and_are_not_needed() -> None:
    check = check_controls(
        [Start(index=0, ended="end", controls=[control("rng", found=False, exercised=False)])], asked=True
    )
    assert (check.status, check.is_needed) == (Status.not_verified, False)


def test_one_that_was_exercised_and_changed_nothing_is_vacuous() -> None:
    starts = [Start(index=0, ended="end", controls=[control("rng", found=False), control("optimizer", found=True)])]
    check = check_controls(starts, asked=True)
    assert (check.status, check.is_needed, check.detail) == (Status.not_verified, True, "vacuous: what of rng")
    assert idle_controls(starts) == []


@pytest.mark.parametrize(
    ("given", "names"), [(None, ("rng", "optimizer")), ("all", None), ("none", ()), (["model"], ("model",))]
)
def test_what_is_left_out(given, names) -> None:
    assert ProofConfig(controls=given).control_names == names
