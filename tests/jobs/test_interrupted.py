"""Runs that are really killed, from outside, and go on."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.jobs import (
    TINY,
    assert_same_state,
    processes_of,
    run_here,
    start,
    stop,
    trajectory,
    wait_for_event,
)

pytestmark = [pytest.mark.distributed, pytest.mark.crash]

JOB = (*TINY, "parallelism=fsdp", "launch.nproc=2", "checkpoint=async", "checkpoint.interval_steps=5", "train.steps=40")
LAST = "checkpoints/step_00000040"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The same job, never interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert run_here(folder, *JOB) == 0
    return folder


def assert_goes_on(folder, whole) -> None:
    """Run again, it ends as if nothing had happened."""
    assert not (folder / LAST).exists(), "what ended it came too late"
    assert run_here(folder, *JOB) == 0
    assert trajectory(folder) == trajectory(whole)
    assert_same_state(folder / LAST, whole / LAST)


def test_ctrl_c_says_so_once_leaves_no_process_and_the_run_goes_on(whole, tmp_path) -> None:
    process = start(tmp_path, *JOB)
    wait_for_event(tmp_path, "commit", 5)
    _, errors = stop(process, signal.SIGINT)
    assert process.returncode == 1, errors
    assert errors.count("ckptrun: interrupted") == 1, errors
    assert "Traceback" not in errors
    assert processes_of(tmp_path) == []
    assert_goes_on(tmp_path, whole)


@pytest.mark.slow
def test_ctrl_c_is_answered_though_no_rank_can_say_so(tmp_path) -> None:
    deaf, mine = (Path(__file__).parent / "user code" / name for name in ("deaf.py", "mine.py"))
    process = start(
        tmp_path / "run",
        "model=custom",
        f"model._target_={deaf}:Deaf",
        f"model.args.sign={tmp_path / 'sign'}",
        "model.loss=mse",
        "data=custom",
        f"data._target_={mine}:Pairs",
        "parallelism=none",
        "launch.stop_seconds=1",
    )
    while not (tmp_path / "sign").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    _, errors = stop(process, signal.SIGINT)
    assert process.returncode == 1
    assert errors.count("\n") == errors.count("ckptrun: interrupted.") == 1, errors


def test_a_killed_rank_takes_the_others_down_is_named_and_the_run_goes_on(whole, tmp_path) -> None:
    process = start(tmp_path, *JOB)
    wait_for_event(tmp_path, "step", 12)
    os.kill(rank_process(tmp_path, 1), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "was ended by SIGKILL" in errors
    assert errors.count("Traceback") == 0, errors
    assert_goes_on(tmp_path, whole)


def test_ranks_end_when_what_has_started_them_is_killed(tmp_path) -> None:
    process = start(tmp_path, *JOB, "train.steps=2000", "data.num_workers=1")
    wait_for_event(tmp_path, "step", 3)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    until = time.monotonic() + 20
    while processes_of(tmp_path) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(tmp_path) == []


def rank_process(folder, rank: int) -> int:
    return json.loads((folder / "environment.json").read_text())["processes"][rank]
