"""Experiments that are sweeps: what they sweep over makes sense, and what is typed counts instead."""

import pytest

from ckptrun.command_line import read_command_line
from ckptrun.config.choices import EXPERIMENT, axes_of, choices_of
from ckptrun.config.compose import config_from
from ckptrun.errors import ConfigError
from tests.sweep.test_sweep import sweep

SWEEPS = [name for name in choices_of(EXPERIMENT)[EXPERIMENT] if axes_of(name)]


def test_these_are_sweeps() -> None:
    assert SWEEPS == ["kill_matrix", "reshard"]


@pytest.mark.parametrize("name", SWEEPS)
def test_every_value_is_one_that_there_is(name) -> None:
    axes = {key: values.split(",") for key, values in axes_of(name).items()}
    firsts = {key: values[0] for key, values in axes.items()}
    for key, values in axes.items():
        assert len(values) == len(set(values)) > 1
        for value in values:
            config_from([f"experiment={name}", *(f"{k}={v}" for k, v in {**firsts, key: value}.items())])


def test_it_is_a_sweep_without_being_asked_to() -> None:
    line = read_command_line(["experiment=reshard"])
    assert line.is_sweep
    assert not line.is_plain
    meshes = "ddp,fsdp,hsdp,tp,fsdp_tp"
    assert line.axes == (f"parallelism={meshes}", f"proof.resume_parallelism={meshes}")
    assert not read_command_line(["experiment=smoke"]).is_sweep


def test_what_is_typed_counts_instead() -> None:
    line = read_command_line(["experiment=reshard", "parallelism=ddp", "-m"])
    assert [text.partition("=")[0] for text in line.axes] == ["proof.resume_parallelism"]
    line = read_command_line(["experiment=reshard", "parallelism=ddp", "proof.resume_parallelism=tp"])
    assert line.is_plain
    assert not line.axes


def test_from_python_it_is_refused_unless_each_axis_has_a_value() -> None:
    with pytest.raises(ConfigError, match=r"experiment=reshard is a sweep, over proof\.resume_parallelism"):
        config_from(["experiment=reshard", "parallelism=ddp"])


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.crash
def test_a_row_of_a_matrix_is_proved(tmp_path) -> None:
    code, printed, cells, _ = sweep(
        tmp_path, "experiment=reshard", "parallelism=ddp", "proof.resume_parallelism=fsdp,tp"
    )
    assert code == 0, printed
    assert [cell["path"] for cell in cells] == ["proof.resume_parallelism=fsdp", "proof.resume_parallelism=tp"]
    assert [cell["verdict"] for cell in cells] == ["equal", "equal"]
