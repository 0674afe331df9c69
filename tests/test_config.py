"""The config: choices, keys, ranges, and the errors a user will make, without starting a rank."""

import subprocess
import sys
from pathlib import Path

import pytest

from ckptrun.__main__ import main
from ckptrun.config.choices import CONF_DIR
from ckptrun.config.parallelism import MeshShape, ParallelismConfig, ParallelismKind, resolve_mesh, wanted_ranks
from ckptrun.config.run import RunConfig, default_run_name, to_plain
from ckptrun.config.schemas import SCHEMAS
from ckptrun.errors import ConfigError
from tests.support.configs import config_of

ROOT = Path(__file__).resolve().parents[1]
CHOICES = sorted(
    (path.parent.name, path.stem) for path in CONF_DIR.glob("*/*.yaml") if path.parent.name != "experiment"
)
# Every choice once, several to a composition, which takes its time.
COMPOSED = [
    "fault=none checkpoint=none model=gpt data=python_source optimizer=adamw schedule=constant precision=fp32 "
    "parallelism=none launch=local proof=reload",
    "fault=bit_flip checkpoint=async model=mlp data=random optimizer=adam schedule=cosine precision=bf16 parallelism=ddp",
    "fault=chaos checkpoint=async_process model=cnn data=shapes optimizer=sgd schedule=multistep precision=fp16 "
    "parallelism=fsdp",
    "fault=disk_full checkpoint=sync model=moe data=text data.files=[a.txt] optimizer=muon schedule=wsd parallelism=ddp_tp",
    "fault=exception model=custom model._target_=a.B data=custom data._target_=a.B optimizer=custom "
    "optimizer._target_=a.B schedule=custom schedule._target_=a.B parallelism=hsdp",
    "fault=exit parallelism=fsdp1",
    "fault=hang parallelism=fsdp1_tp",
    "fault=io_error parallelism=fsdp_tp",
    "fault=lost_file parallelism=hsdp1",
    "fault=oom parallelism=hsdp_tp",
    "fault=sigint parallelism=tp",
    "fault=sigkill proof=full",
    "fault=sigstop optimizer=adafactor",
    "fault=sigterm job=command job.command=train:{run}",
    "fault=slow_storage job=ckptrun crash=none",
    "crash=save job=command job.command=train:{run}",
    "fault=torn_write",
]


@pytest.mark.parametrize("overrides", COMPOSED)
def test_every_choice_composes_into_a_checked_config(overrides: str) -> None:
    config = config_of(*overrides.split())
    assert isinstance(config, RunConfig)
    assert to_plain(config)["train"]["steps"] == config.train.steps


def test_every_choice_is_composed() -> None:
    assert {f"{group}={name}" for group, name in CHOICES} <= set(" ".join(COMPOSED).split())


def test_every_group_has_yaml_types_and_code_of_one_name() -> None:
    groups = {group for group, _ in CHOICES}
    assert groups == set(SCHEMAS)
    for group in groups:
        assert (ROOT / "ckptrun/config" / f"{group}.py").is_file()


def test_every_field_is_documented_under_the_field() -> None:
    import ast

    for path in sorted((ROOT / "ckptrun/config").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                not isinstance(node, ast.ClassDef)
                or not node.name.endswith(("Config", "Section"))
                or node.name == "RunConfig"
            ):
                continue
            for field, after in zip(node.body, [*node.body[1:], None], strict=True):
                if isinstance(field, ast.AnnAssign):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    assert documented, f"{path.name}: {node.name}.{ast.unparse(field.target)}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.steps=0"], ["train.steps", "at least 1", "got 0"]),
        (["train.micro_batch=0"], ["train.micro_batch", "got 0"]),
        (["train.ema_decay=1.0"], ["train.ema_decay", "1.0"]),
        (["train.clip_norm=-1"], ["train.clip_norm", "-1", "null"]),
        (["train.global_batch=30"], ["train.global_batch (30)", "train.micro_batch", "8"]),
        (["train.global_batch=16", "train.accumulate=2"], ["train.global_batch", "train.accumulate"]),
        (["model.heads=3"], ["model.width (64)", "model.heads (3)"]),
        (["model.dropout=1.5"], ["model.dropout", "1.5"]),
        (["parallelism=tp", "model.heads=1"], ["model.heads (1)", "parallelism.tensor (2)"]),
        (["parallelism=tp", "model=mlp", "data=random", "model.features=[8,15,8]"], ["model.features", "15", "parallelism.tensor (2)"]),
        (["parallelism=hsdp", "parallelism.shard=3", "launch.nproc=4"], ["parallelism.shard=3", "6", "4 were started", "launch.nproc=6"]),
        (["parallelism=fsdp", "parallelism.tensor=2"], ["parallelism.tensor=2", "fsdp_tp"]),
        (["parallelism=hsdp", "parallelism.replicate=auto"], ["parallelism.replicate", "parallelism.shard", "auto"]),
        (["parallelism=tp", "model=cnn", "data=shapes"], ["model=cnn", "tp", "convolutions"]),
        (["model=cnn"], ["data=shapes"]),
        (["model=custom"], ["model._target_"]),
        (["checkpoint.interval_steps=0"], ["checkpoint.interval_steps", "got 0"]),
        (["checkpoint.keep_last=0"], ["checkpoint.keep_last", "got 0"]),
        (["checkpoint.load.only=model"], ["checkpoint.load.only", "list"]),
        (["checkpoint.overlapped_staging=true"], ["checkpoint.overlapped_staging", "checkpoint=async"]),
        (["checkpoint=async_process", "checkpoint.path=memory://x"], ["checkpoint=async_process", "memory://x", "checkpoint=async"]),
        (["fault.step=3"], ["fault.step=3", "no fault is chosen", "fault=sigkill"]),
        (["fault.more=[{kind: oom}]"], ["fault.more", "fault=sigkill"]),
        (["fault=sigkill", "fault.mean_steps=3"], ["fault.mean_steps=3", "fault=chaos"]),
        (["fault=disk_full", "fault.seconds=3"], ["fault.seconds=3", "fault=slow_storage"]),
        (["fault=chaos", "fault.step=3"], ["fault.step=3", "fault=chaos", "draws"]),
        (["proof.resume_nproc=2"], ["proof.resume_nproc=2", "fault=sigkill", "proof=full"]),
        (["proof.controls=all"], ["proof.controls=all", "fault=sigkill"]),
        (["proof.resume_parallelism=ddp"], ["proof.resume_parallelism=ddp", "fault=sigkill"]),
        (["data=text"], ["data.files"]),
        (["optimizer=muon", "parallelism=fsdp1"], ["muon", "fsdp1"]),
        (["train.compile=true", "parallelism=fsdp_tp"], ["train.compile", "fsdp_tp"]),
        (["components.model._target_=a.B"], ["components.model", "built-in"]),
    ],
)  # fmt: skip
def test_a_bad_value_names_key_value_and_way_out(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        config_of(*overrides)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train.stepz=3"], ["train.stepz", "did you mean train.steps?"]),
        (["parallelism=xyz"], ["parallelism=xyz", "fsdp_tp"]),
        (["fault=segfault"], ["fault=segfault", "sigkill"]),
        (["fault=sigkill", "checkpoint=none"], ["checkpoint=none"]),
        (["fault=sigkill", "fault.point=staging"], ["fault.point=staging", "checkpoint=async"]),
        (["fault=sigkill", "fault.step=61"], ["fault.step=61", "train.steps=60"]),
        (["fault=bit_flip", "checkpoint.interval_steps=30"], ["checkpoint.interval_steps"]),
        (["fault=sigkill", "proof.controls=[scaler]"], ["proof.controls", "scaler"]),
        (["fault=sigkill", "proof.resume_parallelism=xyz"], ["proof.resume_parallelism", "fsdp_tp"]),
        (["fault=sigkill", "fault.more=[{kind: oom, stp: 3}]"], ["fault.more[0]", "stp"]),
        (["fault=sigkill", "train.steps=1"], ["train.steps=1", "2 steps or more"]),
        (["train.steps=many"], ["train.steps", "many"]),
        (["train.steps=0"], ["train.steps"]),
        (["checkpoint.load.frm=x"], ["checkpoint.load.frm"]),
    ],
)
def test_a_wrong_command_line_ends_with_exit_code_2_and_no_stack(arguments, words, monkeypatch, capsys) -> None:
    # As processes of their own: those of tests/sweep/test_sweep.py.
    monkeypatch.setattr(sys, "argv", ["ckptrun", *arguments])
    with pytest.raises(SystemExit) as ended:
        sys.exit(main())
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert "Traceback" not in said
    for word in words:
        assert word in said


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["--info", "defaults"]])
def test_questions_are_answered_without_torch(arguments: list[str], tmp_path: Path) -> None:
    # A module called torch that cannot be imported stands first on the path.
    (tmp_path / "torch.py").write_text("raise ImportError('torch was imported')")
    done = subprocess.run(
        [sys.executable, "-m", "ckptrun", *arguments],
        cwd=ROOT, env={"PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "parallelism" in done.stdout


def test_run_name_comes_from_what_makes_the_run_what_it_is() -> None:
    assert default_run_name([]) == "default"
    assert default_run_name(["train.seed=3", "parallelism=fsdp"]) == "parallelism=fsdp,train.seed=3"
    assert default_run_name(["parallelism=fsdp", "train.seed=3"]) == "parallelism=fsdp,train.seed=3"
    # The run's length, its checks and where it saves do not make it another run.
    assert (
        default_run_name(["train.steps=9", "proof.reload=none", "checkpoint.path=/x y", "launch.nproc=2"]) == "default"
    )
    # Keys are left out, choices are not: another way to save is another run.
    assert (
        default_run_name(["checkpoint=async", "checkpoint.keep_last=2", "proof=full"]) == "checkpoint=async,proof=full"
    )
    assert default_run_name(["launch=local", "launch.nproc=2"]) == "launch=local"
    assert "/" not in default_run_name(["data.files=[/a/b c.txt]"])
    first, second = default_run_name([f"data.files=[{'a' * 200}]"]), default_run_name([f"data.files=[{'a' * 201}]"])
    assert first != second
    assert max(len(first), len(second)) <= 100


def test_open_dicts_take_new_keys_without_plus() -> None:
    config = config_of("model=custom", "model._target_=a.B", "model.args.width=64", "model.tensor_plan={up.*: colwise}")
    assert config.model.args == {"width": 64}  # type: ignore[attr-defined]
    assert dict(config.model.tensor_plan) == {"up.*": "colwise"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("kind", "degrees", "world_size", "expected"),
    [
        ("none", {}, 1, (1, 1, 1)),
        ("ddp", {"replicate": "auto"}, 3, (3, 1, 1)),
        ("hsdp", {"replicate": 2, "shard": "auto"}, 8, (2, 4, 1)),
        ("fsdp_tp", {"shard": "auto", "tensor": 2}, 4, (1, 2, 2)),
        ("hsdp_tp", {"replicate": 2, "shard": "auto", "tensor": 2}, 8, (2, 2, 2)),
    ],
)
def test_auto_takes_what_the_world_size_leaves(kind: str, degrees: dict, world_size: int, expected: tuple) -> None:
    shape = resolve_mesh(ParallelismConfig(kind=ParallelismKind(kind), **degrees), world_size)
    replicate, shard, tensor = expected
    assert shape == MeshShape(kind=ParallelismKind(kind), replicate=replicate, shard=shard, tensor=tensor)
    assert shape.world_size == world_size


def test_wanted_ranks_fill_the_mesh() -> None:
    assert wanted_ranks(ParallelismConfig(kind=ParallelismKind.none)) == 1
    assert wanted_ranks(ParallelismConfig(kind=ParallelismKind.tp, tensor=2)) == 2
    assert wanted_ranks(ParallelismConfig(kind=ParallelismKind.fsdp_tp, shard="auto", tensor=2)) == 4
    assert wanted_ranks(ParallelismConfig(kind=ParallelismKind.hsdp_tp, replicate=2, shard="auto", tensor=2)) == 8
