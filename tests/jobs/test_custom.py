"""A user's own model, optimizer, schedule, dataset and components, from a file outside the package."""

from pathlib import Path

import pytest

from tests.support.jobs import assert_resumes_exactly, run_here, tensors, values, verdict

pytestmark = pytest.mark.distributed

MINE = f"{Path(__file__).parent / 'user code' / 'mine.py'}"
NET = (
    "model=custom", f"model._target_='{MINE}:Net'", "model.loss=mse", "model.blocks=[layers.*]",
    "model.tensor_plan={layers.*.up: colwise, layers.*.down: rowwise}", "train.micro_batch=4",
)  # fmt: skip
PAIRS = ("data=custom", f"data._target_='{MINE}:Pairs'")
EVERYTHING = (
    *NET, *PAIRS, "model.args.width=16", "data.args={samples: 40}",
    "optimizer=custom", f"optimizer._target_='{MINE}:Lion'", "optimizer.args.beta=0.8", "optimizer.lr=0.01",
    "schedule=custom", f"schedule._target_='{MINE}:Halving'", "schedule.args.every=2",
    f"components.memory._target_='{MINE}:Memory'", "components.memory.args.note=kept",
)  # fmt: skip


@pytest.mark.parametrize(
    "kind", ["none", "fsdp", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("ddp", "fsdp_tp"))]
)
def test_everything_of_the_users_own_resumes_exactly(kind, tmp_path) -> None:
    mode = "sync" if kind in ("none", "fsdp") else "async"
    ranks = [] if kind in ("none", "fsdp_tp") else ["launch.nproc=2"]
    whole = assert_resumes_exactly(
        tmp_path, *EVERYTHING, f"parallelism={kind}", f"checkpoint={mode}", *ranks, "data.num_workers=1"
    )
    saved = values(whole / "checkpoints/step_00000006")
    assert saved["memory.note"] == {"$bytes": "a2VwdA=="}
    assert saved["schedule.steps"] == 6
    names = {key.split(":")[1] for key in tensors(whole / "checkpoints/step_00000006")}
    assert "optimizer.state.layers.0.up.weight.momentum_of_mine" in names
    assert "model.never" in names
    assert "optimizer.state.never.momentum_of_mine" not in names
    assert "memory.losses.5" in names


def test_a_component_that_takes_nothing_back_is_different_and_blamed(tmp_path) -> None:
    forgetful = (*NET, *PAIRS, f"components.memory._target_='{MINE}:Forgetful'", "train.steps=3")
    done = run_here(tmp_path, *forgetful)
    assert done == 3
    found = verdict(tmp_path)
    assert found["verdict"] == "different"
    assert found["blame"] == "memory"
    assert found["first_difference"]["leaf"].startswith("memory.")
    assert found["first_difference"]["rank"] == 0
    assert found["first_difference"]["step"] == 3
    assert "DIFFERENT" in done.output


OWN_CODE = (
    "model=custom", "model.loss=mse", "data=random", "data.samples=64", "train.micro_batch=4", "train.steps=8",
    "checkpoint.interval_steps=3", "fault=sigkill", "proof.controls=none", "launch.nproc=2",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "blame", "kind"), [("CountsInOwnCode", None, "fsdp"), ("RoundsInOwnCode", "model", "ddp")]
)
def test_state_dict_code_of_a_model_is_proved_too(name, blame, kind, tmp_path) -> None:
    run_here(tmp_path, *OWN_CODE, f"model._target_='{MINE}:{name}'", f"parallelism={kind}")
    found = verdict(tmp_path)
    assert (found["verdict"], found["blame"]) == ("equal" if blame is None else "different", blame), found["reason"]


def test_resuming_into_a_component_that_takes_nothing_back_stops_before_training(tmp_path) -> None:
    memory = (*NET, *PAIRS, "train.steps=3")
    assert run_here(tmp_path, *memory, f"components.memory._target_='{MINE}:Memory'") == 0
    assert run_here(tmp_path, *memory, f"components.memory._target_='{MINE}:Forgetful'", "train.steps=6") == 3
    assert verdict(tmp_path)["blame"] == "memory"
    assert not (tmp_path / "checkpoints/step_00000006").exists()


def test_what_cannot_be_saved_without_pickle_is_refused_by_name(tmp_path) -> None:
    done = run_here(tmp_path, *NET, *PAIRS, f"components.bad._target_='{MINE}:Unsavable'", "train.steps=2")
    assert done == 1
    assert "bad.socket" in done.errors
    assert "object" in done.errors
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_failing_rank_is_shown_once_and_first(tmp_path) -> None:
    job = [text.replace(":Net'", ":FailsOnRank1'") for text in NET]
    done = run_here(tmp_path, *job, *PAIRS, "parallelism=ddp", "launch.nproc=4")
    assert done == 1
    assert done.errors.count("ValueError: the user's own mistake") == 1
    assert done.errors.count("Traceback") == 1
    assert done.errors.startswith("ckptrun: rank 1 failed")


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("nowhere.Net", ["model._target_", "nowhere"]),
        ("no_file.py:Net", ["model._target_", "no_file.py"]),
        (f"{MINE}:Nothing", ["model._target_", "Nothing"]),
        (f"{MINE}:Memory", ["model._target_", "torch.nn.Module"]),
    ],
)
def test_a_wrong_target_is_named(target, words, tmp_path) -> None:
    done = run_here(tmp_path, "model=custom", f"model._target_='{target}'", "model.loss=mse", *PAIRS)
    assert done == 2
    for word in words:
        assert word in done.errors
    assert "Traceback" not in done.errors


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([*NET, "model.args={wdth: 4}"], ["model", "wdth"]),
        ([*NET, "model.loss=model"], ["model.loss=model", "forward"]),
        ([*NET, "optimizer=custom", "optimizer._target_=torch.optim.LBFGS"], ["optimizer", "closure"]),
        (
            [*NET, "schedule=custom", "schedule._target_=torch.optim.lr_scheduler.ReduceLROnPlateau"],
            ["schedule", "metrics"],
        ),
    ],
    ids=["argument", "loss", "closure", "metrics"],
)
def test_a_class_that_cannot_be_used_so_is_refused_by_name(overrides, words, tmp_path) -> None:
    done = run_here(tmp_path, *overrides, *PAIRS, "train.steps=2")
    assert done == 2
    for word in words:
        assert word in done.errors
    assert "Traceback" not in done.errors


@pytest.mark.slow
def test_fine_tuning_takes_the_weights_only_and_goes_on_after_restarts(tmp_path) -> None:
    first, tuned = tmp_path / "first", tmp_path / "tuned"
    assert run_here(first, *NET, *PAIRS, "train.steps=3") == 0
    other = [text.replace(":Net'", ":OtherHead'") for text in NET]
    job = (*other, *PAIRS, f"checkpoint.load.from='{first}'", "train.freeze=[layers.*]", "checkpoint.interval_steps=2")
    done = run_here(tuned, *job, "train.steps=2")
    assert done == 2
    assert "model.new_head.weight" in done.errors
    assert "checkpoint.load.allow_missing" in done.errors
    job = (*job, "checkpoint.load.allow_missing=[new_head.*]")
    done = run_here(tuned, *job, "train.steps=2")
    assert done == 2
    assert "model.head.weight" in done.errors
    assert "checkpoint.load.allow_extra" in done.errors
    job = (*job, "checkpoint.load.allow_extra=[head.*]")
    for steps in (2, 4, 6):
        assert run_here(tuned, *job, f"train.steps={steps}") == 0
        assert verdict(tuned)["verdict"] == "equal"
    before, after = tensors(first / "checkpoints/step_00000003"), tensors(tuned / "checkpoints/step_00000006")
    frozen = "rank_00000.safetensors:model.layers.0.up.weight"
    assert after[frozen] == before[frozen]
    assert values(tuned / "checkpoints/step_00000006")["progress.step"] == 6
    assert "rank_00000.safetensors:model.new_head.weight" in after
    assert not [name for name in after if "optimizer.state.layers" in name]


def test_the_example_of_the_readme_runs(tmp_path) -> None:
    example = [
        "model=custom", "model._target_=examples/mine.py:Net", "model.args.width=32", "model.loss=mse", "data=custom",
        "data._target_=examples/mine.py:Pairs", "components.best._target_=examples/mine.py:BestLoss", "train.steps=4",
    ]  # fmt: skip
    plan = ["model.blocks=[layers.*]", "model.tensor_plan={layers.*.up: colwise, layers.*.down: rowwise}"]
    assert run_here(tmp_path / "one", *example) == 0
    assert run_here(tmp_path / "four", *example, *plan, "parallelism=fsdp_tp") == 0
    assert values(tmp_path / "four/checkpoints/step_00000004")["best.step"] > 0
