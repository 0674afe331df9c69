"""``proof.reload=every_save`` builds its objects in processes beside the ranks, and leaves nothing behind."""

import pytest

from tests.support.jobs import events, processes_of, run_here, trajectory, verdict

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

JOB = (
    "model=custom", "model._target_=tests.jobs.registry.Registry", "model.loss=mse", "data=random",
    "parallelism=ddp", "launch.nproc=2", "train.steps=4", "checkpoint.interval_steps=1",
)  # fmt: skip


def test_a_model_that_a_second_one_would_disturb_trains_as_without_the_check(tmp_path) -> None:
    plain, checked = tmp_path / "plain", tmp_path / "checked"
    assert run_here(plain, *JOB, "proof.reload=none") == 0
    done = run_here(checked, *JOB, "proof.reload=every_save")
    assert done == 0, done.output + done.errors
    assert trajectory(checked) == trajectory(plain)
    loads = [e for e in events(checked) if e["event"] == "check" and e["name"] == "loaded_equals_saved"]
    assert [load["status"] for load in loads] == ["equal"] * 4
    assert [load["detail"].split(" at ")[1] for load in loads] == [f"step {step}" for step in (1, 2, 3, 4)]
    assert verdict(checked)["verdict"] == "equal"
    assert processes_of(checked) == []
