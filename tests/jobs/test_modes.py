"""Every switch of the training loop and of saving, each proved by an exact resume."""

import json

import pytest

from tests.support.jobs import TINY, assert_resumes_exactly, events, run_here, trajectory, verdict

pytestmark = pytest.mark.distributed

CASES = {
    "cnn_ddp_batchnorm": ["model=cnn", "data=shapes", "data.samples=64", "parallelism=ddp", "launch.nproc=2"],
    "cnn_fsdp_overlapped": [
        "model=cnn", "data=shapes", "data.samples=64", "parallelism=fsdp", "launch.nproc=2",
        "checkpoint=async", "checkpoint.overlapped_staging=true",
    ],
    "mlp_uneven_fsdp": ["model=mlp", "data=random", "parallelism=fsdp", "launch.nproc=3", "checkpoint=async"],
    "moe_fp16_fsdp_tp": [
        *TINY, "model=moe", "precision=fp16", "parallelism=fsdp_tp", "precision.growth_interval=2",
    ],
    "fp16_skipped_step_ddp": [*TINY, "precision=fp16", "precision.initial_scale=1e30", "parallelism=ddp", "launch.nproc=2"],
    "bf16_ema_accumulate_fsdp": [
        *TINY, "precision=bf16", "train.ema_decay=0.9", "train.accumulate=2", "parallelism=fsdp", "launch.nproc=2",
    ],
    "ema_fsdp1": [*TINY, "train.ema_decay=0.9", "parallelism=fsdp1", "launch.nproc=2"],
    "global_batch_workers": [*TINY, "train.global_batch=8", "data.num_workers=2", "parallelism=ddp", "launch.nproc=2"],
    "activation_checkpointing_frozen": [
        *TINY, "train.activation_checkpointing=true", "train.freeze=[blocks.0.attention.*]",
        "parallelism=fsdp", "launch.nproc=2",
    ],
    "epoch_ends_at_the_checkpoint": ["model=mlp", "data=random", "data.samples=48"],
    "several_epochs": ["model=mlp", "data=random", "data.samples=16", "train.micro_batch=8", "data.num_workers=1"],
    "async_uncached": [*TINY, "checkpoint=async", "checkpoint.cached_staging=false"],
    "async_overlapped_tp": [*TINY, "checkpoint=async", "checkpoint.overlapped_staging=true", "parallelism=tp"],
    "sgd_multistep": [*TINY, "optimizer=sgd", "schedule=multistep", "schedule.milestones=[2,4]"],
    "adam_wsd": [*TINY, "optimizer=adam", "optimizer.amsgrad=true", "schedule=wsd", "schedule.decay_steps=3"],
    "adafactor_fsdp": [*TINY, "optimizer=adafactor", "parallelism=fsdp", "launch.nproc=2"],
    "muon_fsdp_tp": [*TINY, "optimizer=muon", "parallelism=fsdp_tp"],
    "untied_no_clip": [*TINY, "model.tied_embeddings=false", "train.clip_norm=null", "data.shuffle=false"],
}  # fmt: skip


QUICK = {"fp16_skipped_step_ddp", "bf16_ema_accumulate_fsdp", "epoch_ends_at_the_checkpoint", "global_batch_workers"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in QUICK else pytest.mark.slow) for case in CASES]
)
def test_resumes_exactly(case, tmp_path) -> None:
    assert_resumes_exactly(tmp_path, *CASES[case])


@pytest.mark.slow
def test_compiled_run_resumes_exactly(tmp_path) -> None:
    # All kinds are compiled, saved and resumed for the table of docs/parallelism.md.
    assert_resumes_exactly(tmp_path, *TINY, "train.compile=true", "parallelism=fsdp", "launch.nproc=2")


def test_skipped_steps_are_counted_and_said(tmp_path) -> None:
    done = run_here(tmp_path, *CASES["fp16_skipped_step_ddp"], "train.steps=2")
    assert done == 0
    assert [event["skipped"] for event in events(tmp_path) if event["event"] == "step"] == [True, True]
    assert "2 skipped: fp16 overflow" in done.output


def test_memory_path_works_in_one_process(tmp_path) -> None:
    assert run_here(tmp_path, *TINY, "train.steps=3", "checkpoint.path=memory://runs/a") == 0
    assert verdict(tmp_path)["verdict"] == "equal"
    assert not (tmp_path / "checkpoints").exists()


def test_checking_every_save_changes_nothing_wherever_it_lies(tmp_path) -> None:
    path = tmp_path / "my checkpoints" / "of today"
    job = (*TINY, "train.steps=4", "checkpoint.interval_steps=2")
    assert run_here(tmp_path / "run", *job, f"checkpoint.path={path}", "proof.reload=every_save") == 0
    assert sorted(folder.name for folder in path.iterdir()) == ["step_00000002", "step_00000004"]
    loads = [check["detail"] for check in verdict(tmp_path / "run")["checks"] if check["name"] == "loaded_equals_saved"]
    assert [detail.split(" at ")[1] for detail in loads] == ["step 2", "step 4"]
    assert run_here(tmp_path / "plain", *TINY, "train.steps=4", "checkpoint=none") == 0
    assert trajectory(tmp_path / "run") == trajectory(tmp_path / "plain")


def test_keep_last_removes_the_oldest(tmp_path) -> None:
    assert (
        run_here(
            tmp_path,
            *TINY,
            "train.steps=6",
            "checkpoint.interval_steps=2",
            "checkpoint.keep_last=2",
            "checkpoint=async",
        )
        == 0
    )
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step_00000004", "step_00000006"]


def test_the_run_folder_says_what_the_run_was(tmp_path) -> None:
    assert run_here(tmp_path, *TINY, "train.steps=2", "parallelism=ddp", "launch.nproc=2") == 0
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["mesh"] == {"replicate": 2}
    assert environment["world_size"] == 2
    assert environment["threads"] == 1
    assert "parallelism=ddp" in environment["command"]
    assert "micro_batch: 2" in (tmp_path / "config.yaml").read_text()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = board.Tags()
    assert set(tags["scalars"]) == {
        "train/loss", "train/learning_rate", "train/gradient_norm", "train/step_seconds", "train/tokens_per_second",
        "checkpoint/blocked_seconds", "checkpoint/background_seconds", "checkpoint/bytes",
    }  # fmt: skip
    assert "config/text_summary" in tags["tensors"]
