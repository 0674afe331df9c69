"""``experiment=smoke`` composes with every model and every dataset that fits it, and is small where it can be."""

import pytest

from ckptrun.config.compose import config_from
from ckptrun.config.fault import FaultKind
from ckptrun.config.parallelism import ParallelismKind

MODEL = ("model=custom", "model._target_=a.B")
DATA = ("data=custom", "data._target_=a:B")
TEXT = ("data=text", "data.files=[a.txt]")
RUNS = [
    ((), {"model.width": 32, "model.context": 16, "data.max_bytes": 1000}),
    (("model=moe",), {"model.width": 32, "model.heads": 2, "data.max_bytes": 1000}),
    (("model=gpt", *TEXT), {"model.context": 16, "data.max_bytes": 1000}),
    (("model=mlp", "data=random"), {"data.samples": 40}),
    (("model=cnn", "data=shapes"), {"data.samples": 40}),
    (MODEL, {"data.max_bytes": 1000, "model.context": 64}),
    ((*MODEL, *DATA), {"data.num_workers": 0}),
    (("optimizer=custom", "optimizer._target_=a.B", "schedule=wsd"), {"optimizer.lr": 1e-3}),
    # What is typed counts.
    (
        ("model.width=64", "data.max_bytes=3000", "parallelism=ddp", "fault=oom", "train.steps=20"),
        {"model.width": 64, "data.max_bytes": 3000, "train.steps": 20, "fault.kind": "oom"},
    ),
]


@pytest.mark.parametrize(("overrides", "values"), RUNS, ids=lambda value: " ".join(value) or "default")
def test_smoke_composes_with_every_choice(overrides, values) -> None:
    config = config_from(["experiment=smoke", *overrides])
    for key, value in values.items():
        section, name = key.split(".")
        assert getattr(getattr(config, section), name) == value, key
    if not any(text.startswith(("fault", "parallelism", "train")) for text in overrides):
        assert config.fault.kind is FaultKind.sigkill
        assert config.parallelism.kind is ParallelismKind.fsdp
        assert (config.train.steps, config.train.micro_batch, config.checkpoint.interval_steps) == (12, 2, 4)
    assert str(config.run.dir).startswith("outputs/smoke/")


def test_without_an_experiment_nothing_is_small() -> None:
    config = config_from([])
    assert (config.model.width, config.data.max_bytes) == (64, 2_000_000)  # type: ignore[attr-defined]
