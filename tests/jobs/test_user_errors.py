"""Mistakes that need a run, a folder or a checkpoint to be seen: exit code 2, one message, no stack, nothing lost."""

import shutil
import signal
import subprocess
import sys

import pytest

from tests.support.bits import flip
from tests.support.jobs import (
    ROOT,
    TINY,
    answers,
    assert_same_state,
    events,
    run_here,
    start,
    stop,
    verdict,
    wait_for_event,
)

pytestmark = pytest.mark.distributed

JOB = (*TINY, "train.steps=4", "checkpoint.interval_steps=2")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A finished run with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("done")
    assert run_here(folder, *JOB) == 0
    return folder


@pytest.fixture
def copy(done, tmp_path):
    """A copy of it that a test may spoil."""
    return shutil.copytree(done, tmp_path / "copy")


def steps_in(folder) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["checkpoint.resume=3"], ["checkpoint.resume=3", "2, 4"]),
        (["checkpoint.resume=/nowhere/step_00000002"], ["checkpoint.resume", "/nowhere"]),
        (["checkpoint.resume=2"], ["checkpoint.resume=2", "4", "checkpoint.overwrite=true", "run.name"]),
        (["model.width=64"], ["model.width", "32", "64", "run.name"]),
        (["optimizer=sgd"], ["optimizer was", "AdamW", "SGD"]),
        (["train.ema_decay=0.9"], ["ema", "checkpoint.load.exclude=[ema]"]),
        (["checkpoint.load.only=[modle]"], ["checkpoint.load.only", "modle", "optimizer"]),
        (["checkpoint.path=foo://x"], ["checkpoint.path", "foo"]),
        (
            ["checkpoint.resume=none", "checkpoint.overwrite=true", "checkpoint.load.from=/nowhere"],
            ["load.from", "/nowhere"],
        ),
        (["checkpoint.load.from=/x", "checkpoint.load.only=[model,progress]"], ["progress", "checkpoint.resume"]),
        (["train.freeze=['*']"], ["train.freeze", "no parameter"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_mistake_is_named_and_nothing_is_touched(overrides, words, copy) -> None:
    before = steps_in(copy)
    ended = run_here(copy, *JOB, *overrides)
    assert ended == 2
    for word in words:
        assert word in ended.errors
    assert "Traceback" not in ended.errors
    assert ended.errors.count("ckptrun: ") == 1
    assert steps_in(copy) == before


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["checkpoint.resume=/no/such"], ["checkpoint.resume=/no/such"]),
        (["checkpoint.load.from=/no/such"], ["checkpoint.load.from=/no/such"]),
        (["proof.reference=/no/such"], ["proof.reference=/no/such"]),
        (["data=text", "data.files=[/no/such]"], ["data.files", "/no/such"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_nothing_is_made_for_a_start_that_cannot_be(overrides, words, tmp_path) -> None:
    ended = run_here(tmp_path / "outputs" / "run", *JOB, *overrides)
    assert ended == 2
    for word in words:
        assert word in ended.errors
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_files_of_somebody_else_is_left_as_it_is(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("mine")
    (tmp_path / "checkpoints").mkdir()
    ended = run_here(tmp_path, *JOB)
    assert ended == 2
    assert f"run.dir={tmp_path} holds 'config.yaml'" in ended.errors
    assert {path.name for path in tmp_path.iterdir()} == {"config.yaml", "checkpoints"}
    assert (tmp_path / "config.yaml").read_text() == "mine"


@pytest.mark.parametrize("fault", [(), ("fault=sigkill",)])
def test_a_module_that_raises_is_named_with_its_key_and_line(fault, tmp_path) -> None:
    module = tmp_path / "raises.py"
    module.write_text("import math\n\nclass Net:\n    pass\n\nraise RuntimeError('boom')\n")
    ended = run_here(tmp_path / "run", "model=custom", "data=random", f"model._target_={module}:Net", *fault)
    assert ended == 2
    assert f"model._target_: {module} cannot be imported: RuntimeError: boom (in {module}, line 6)" in ended.errors
    assert "Traceback" not in ended.errors


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("not a folder")
    ended = run_here(tmp_path / "file" / "run", *JOB)
    assert ended == 2
    assert "run.dir" in ended.errors
    ended = run_here(tmp_path / "run", *JOB, f"checkpoint.path={tmp_path / 'file'}")
    assert ended == 2
    assert "checkpoint.path" in ended.errors


def test_going_back_with_overwrite_removes_the_later_steps_and_repeats_them(copy, done) -> None:
    ended = run_here(copy, *JOB, "checkpoint.resume=2", "checkpoint.overwrite=true")
    assert ended == 0
    assert "Removed the checkpoints of steps 4" in ended.output
    assert steps_in(copy) == ["step_00000002", "step_00000004"]
    assert_same_state(copy / "checkpoints/step_00000004", done / "checkpoints/step_00000004")


def test_a_complete_run_says_so_and_checks_its_last_checkpoint(copy) -> None:
    ended = run_here(copy, *JOB)
    assert ended == 0
    assert "complete: 4 of 4 steps" in ended.output
    assert verdict(copy)["verdict"] == "equal"
    assert steps_in(copy) == ["step_00000002", "step_00000004"]


def test_a_component_can_be_left_out_and_changed_keys_are_listed_at_the_start(copy) -> None:
    left_out = ("train.ema_decay=0.9", "checkpoint.load.exclude=[ema,rng]")
    ended = run_here(copy, *JOB, "train.steps=6", "train.micro_batch=4", *left_out)
    assert ended == 0, ended
    assert verdict(copy)["verdict"] == "equal"
    assert "train.micro_batch was 2, now 4" in ended.output
    assert "train.steps was 4, now 6" in ended.output


def test_another_number_of_ranks_takes_the_state_over_and_says_what_it_draws_anew(copy) -> None:
    ended = run_here(copy, *JOB, "train.steps=6", "parallelism=fsdp", "launch.nproc=2")
    assert ended == 0, ended
    assert "Random streams were drawn anew" in ended.output
    assert verdict(copy)["verdict"] == "equal"


def test_going_back_to_a_damaged_checkpoint_removes_nothing(copy) -> None:
    (copy / "checkpoints/step_00000002/rank_00000.safetensors").unlink()
    ended = run_here(copy, *JOB, "checkpoint.resume=2", "checkpoint.overwrite=true")
    assert ended == 1
    assert "step_00000002" in ended.errors
    assert "checkpoint.resume=4" in ended.errors
    assert steps_in(copy) == ["step_00000002", "step_00000004"]


def test_the_path_of_another_run_counts_until_this_one_has_a_checkpoint(done, tmp_path) -> None:
    path = f"checkpoint.resume={done}/checkpoints/step_00000002"
    for steps, expected in (("3", "step 2"), ("6", "step 3")):
        ended = run_here(tmp_path, *JOB, f"train.steps={steps}", path)
        assert ended == 0, ended
        assert f"({expected})" in ended.output
    assert steps_in(tmp_path) == ["step_00000003", "step_00000004", "step_00000006"]


def test_a_second_start_in_a_folder_in_use_is_refused(copy) -> None:
    process = start(copy, *JOB, "train.steps=100000", "checkpoint.interval_steps=100000")
    try:
        wait_for_event(copy, "step", 5)
        leftover = copy / "checkpoints" / f"step_00000009.tmp-{'0' * 32}"
        leftover.mkdir()
        ended = run_here(copy, *JOB, "train.steps=6")
        assert ended == 2
        assert "Another process is running in" in ended.errors
        assert leftover.is_dir(), "what may be a save in flight of the other run was removed"
    finally:
        stop(process)


def test_a_loss_that_is_not_finite_is_said(tmp_path) -> None:
    ended = run_here(tmp_path, *JOB, "optimizer=sgd", "optimizer.lr=1e30", "train.clip_norm=null")
    assert "The loss is not finite at step" in ended.output


def test_ctrl_c_in_the_first_second_is_one_line(tmp_path) -> None:
    process = start(tmp_path, *JOB)
    while not answers(process.pid, signal.SIGTERM):
        assert process.poll() is None, process.communicate()
    _, errors = stop(process, signal.SIGINT)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert "interrupted" in errors


@pytest.mark.parametrize("name", ["rank_00000.safetensors", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_skipped_loudly_and_replaced(copy, name) -> None:
    whole = run_here(copy.parent / "whole", *JOB, "train.steps=6")
    assert whole == 0
    flip(copy / "checkpoints/step_00000004" / name, -100)
    ended = run_here(copy, *JOB, "train.steps=6")
    assert ended == 0
    assert "DAMAGED, skipped: " in ended.errors
    assert name in ended.errors
    assert "Resumed from" in ended.output
    assert "(step 2)" in ended.output
    (event,) = [event for event in events(copy) if event["event"] == "skipped"]
    assert event["folder"].endswith("step_00000004")
    for step in (4, 6):
        folder = f"checkpoints/step_{step:08d}"
        assert_same_state(copy / folder, copy.parent / "whole" / folder)


def test_with_no_whole_checkpoint_a_run_does_not_start_anew_unless_told_so(copy) -> None:
    for step in (2, 4):
        flip(copy / f"checkpoints/step_{step:08d}/rank_00000.safetensors", -100)
    ended = run_here(copy, *JOB, "train.steps=6")
    assert ended == 1
    assert "Traceback" not in ended.errors
    assert "is whole" in ended.errors
    assert "checkpoint.resume=none checkpoint.overwrite=true" in ended.errors
    assert steps_in(copy) == ["step_00000002", "step_00000004"]
    assert run_here(copy, *JOB, "train.steps=6", "checkpoint.resume=none", "checkpoint.overwrite=true") == 0


def test_a_damaged_checkpoint_that_was_asked_for_is_not_passed_over(copy) -> None:
    flip(copy / "checkpoints/step_00000004/rank_00000.safetensors", -100)
    ended = run_here(copy, *JOB, "train.steps=6", "checkpoint.resume=4")
    assert ended == 1
    assert "rank_00000.safetensors" in ended.errors
    assert "Other committed steps: 2" in ended.errors


@pytest.mark.slow
def test_torchrun_with_another_number_of_ranks_says_so_once(tmp_path) -> None:
    process = start(
        tmp_path, *JOB, "parallelism=fsdp_tp", launcher=("torch.distributed.run", "--nproc-per-node", "3", "-m")
    )
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert errors.count("ckptrun: The mesh of parallelism=fsdp_tp") == 1
    assert "3 were started" in errors


@pytest.mark.slow
def test_the_console_script_runs_a_module_of_the_working_folder(tmp_path) -> None:
    (tmp_path / "nets.py").write_text(
        "from torch import nn\n\nclass Net(nn.Sequential):\n    def __init__(self):\n        super().__init__(nn.Linear(8, 8))\n"
    )
    command = [
        sys.executable, "-c", "from ckptrun.__main__ import main; main()", "model=custom", "model._target_=nets.Net",
        "model.loss=mse", "data=random", "train.steps=2",
    ]  # fmt: skip
    ended = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONSAFEPATH": "1"},
        capture_output=True, text=True, check=False, timeout=90,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "outputs/default/data=random,model._target_=nets.Net,model.loss=mse,model=custom"
    assert steps_in(run) == ["step_00000002"]
