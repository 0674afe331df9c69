"""A run that is gone back with on purpose: what was announced is no difference, and an answer stays the same."""

import json

import pytest

from tests.support.jobs import run_here, trajectory, verdict

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

JOB = ("model=mlp", "data=random", "parallelism=none", "checkpoint.interval_steps=1", "schedule=cosine")
BACK = ("train.steps=4", "checkpoint.resume=1", "checkpoint.overwrite=true")


def test_going_back_after_an_announced_change_is_no_difference_and_a_real_one_stays(tmp_path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    assert run_here(run, *JOB, "train.steps=2") == 0
    assert run_here(run, *JOB, "train.steps=4") == 0
    back = run_here(run, *JOB, *BACK)
    assert back == 0, back.output + back.errors
    assert "train.steps was 2, now 4" in back.output
    for _ in range(2):
        assert run_here(run, *JOB, "train.steps=4") == 0
    assert verdict(run)["verdict"] == "equal"
    # Begun anew it is the run of four steps, and what was left behind is none of it.
    assert run_here(whole, *JOB, "train.steps=4") == 0
    anew = ("train.steps=4", "checkpoint.resume=none", "checkpoint.overwrite=true", f"proof.reference={whole}")
    done = run_here(run, *JOB, *anew)
    assert done == 0, done.output + done.errors
    # A step that came out otherwise though nothing was changed.
    ledger = run / "ledger/rank_00000.jsonl"
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert [line["step"] for line in lines[-4:]] == [1, 2, 3, 4]
    lines[-2]["loss"] = (1.0).hex()
    ledger.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for overrides in (BACK, ("train.steps=4",), BACK, ("train.steps=4",)):
        done = run_here(run, *JOB, *overrides)
        assert done == 3, done.output + done.errors
        assert "step 3" in verdict(run)["reason"]


def test_steps_of_a_run_that_was_not_changed_repeat_themselves(tmp_path) -> None:
    for overrides in (("train.steps=4",), BACK):
        done = run_here(tmp_path, *JOB, *overrides)
        assert done == 0, done.output + done.errors
    assert len(trajectory(tmp_path)) == 4
    (check,) = [check for check in verdict(tmp_path)["checks"] if check["name"] == "repeats"]
    assert check["status"] == "equal"
    assert check["detail"].startswith("3 steps")
