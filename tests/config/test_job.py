"""Group ``job``: what can be seen wrong with a command before it is started."""

import re

import pytest

from ckptrun.command_line import overrides_of_prove
from ckptrun.config.job import JobKind
from ckptrun.errors import ConfigError
from ckptrun.foreign.preflight import check_command_proof
from tests.support.configs import config_of

COMMAND = "job.command='python train.py --out {run}'"


@pytest.mark.parametrize(
    "argv",
    [
        ["python", "train.py", "--output_dir", "{run}"],
        ["sh", "-c", "echo \"it's\" > {run}/a; python -c 'print(1)'"],
        ["python", "-c", "x = {'a': [1, 2], \"b\": '\\n'}", "{run}", ""],
        ["train", "--list=a,b", "--dict={a:1}", "--path={run}/${HOME}", "--back\\slash\\", "--eq=a=b"],
        ["train", "--tick=`x`", "--paren=(1)", "--unicode=äß{run}", "trailing\\'quote\\"],
    ],
)
def test_a_command_comes_through_as_it_was_typed(argv):
    overrides = overrides_of_prove(["prove", "fault.step=12", "--", *argv])
    config = config_of(*overrides)
    assert config.job.kind is JobKind.command
    assert config.job.command == argv
    assert (str(config.fault.kind), config.fault.step) == ("sigkill", 12)


def test_anything_else_is_left_as_it_is():
    assert overrides_of_prove(["parallelism=ddp", "--", "x"]) == ["parallelism=ddp", "--", "x"]


def test_a_fault_that_is_chosen_is_taken():
    assert "fault=sigkill" not in overrides_of_prove(["prove", "fault=sigterm", "--", "x", "{run}"])


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["prove"], "needs -- before the command"),
        (["prove", "python", "train.py"], "needs -- before the command"),
        (["prove", "fault=sigkill", "--"], "there is no command after --"),
        (["prove", "job.command=x", "--", "y"], "job.command is given by the command after --"),
        (["prove", "job=ckptrun", "--", "y"], "job is given by the command after --"),
    ],
)
def test_what_cannot_be_meant_is_refused(typed, says):
    with pytest.raises(ConfigError, match=says):
        overrides_of_prove(typed)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["job=command"], "job.command must be given"),
        ([COMMAND, "job=command", "job.checkpoints=/data/x"], "must be a pattern of paths within {run}"),
        (["job.checkpoints=x"], "job.checkpoints has no effect on ckptrun's own runs"),
        (["job=command", "job.command='python train.py'"], "put {run} where the command names its output folder"),
        (["job=command", "job.command='python \"train'"], "cannot be read as a command line"),
        (["job=command", "job.command=7"], "job.command must be a command"),
        (["job=command", "job.command='train {run} {checkpoint}'"], "Give the command that resumes in job.resume"),
        (["job=command", COMMAND, "job.resume='python train.py'"], "could not know what to resume from"),
        (["job=command", COMMAND, "job.timeout_seconds=0"], "job.timeout_seconds must be at least 1"),
        ([COMMAND], "job.command has no effect on ckptrun's own runs. Choose job=command"),
        (["job.env={A: 1}"], "job.env has no effect on ckptrun's own runs"),
        (["job.deterministic=true"], "job.deterministic has no effect on ckptrun's own runs"),
    ],
)
def test_mistakes_are_named_with_the_way_out(keys, says):
    with pytest.raises(ConfigError, match=says):
        config_of(*keys)


@pytest.mark.parametrize("place", ["job.cwd={run}/work", "job.env.OUT={run}", "job.env={OUT: '{run}', B: 2}"])
def test_the_folder_may_stand_elsewhere(place):
    config = config_of("job=command", "job.command=train --fast", place)
    assert config.job.command == ["train", "--fast"]
    assert "{run}" in f"{config.job.cwd} {config.job.env}"


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["fault=bit_flip"], "strikes only ckptrun's own runs"),
        (["fault=sigkill", "proof.controls=[rng]"], "proof.controls is for ckptrun's own runs"),
        (["fault=sigkill", "proof.resume_nproc=2"], "proof.resume_nproc is for ckptrun's own runs"),
        (["fault=sigkill", "'proof.ignore=[model.x]'"], "proof.ignore is for ckptrun's own runs"),
        (["proof=full"], "proof=full is for ckptrun's own runs"),
    ],
)
def test_what_only_our_own_runs_can_do_is_refused(keys, says):
    config = config_of("job=command", COMMAND, *(key.strip("'") for key in keys))
    with pytest.raises(ConfigError, match=says):
        check_command_proof(config)


def test_the_folder_of_a_proof_is_named_after_the_script():
    names = {
        config_of("job=command", f"job.command='python {script} {{run}}'", "fault=sigkill").run.name
        for script in ("a/train.py", "b/train.py", "a/train.py")
    }
    assert len(names) == 2
    assert all("train-" in name and "/" not in name for name in names)
    resumed = config_of(
        "job=command", COMMAND, "fault=sigkill", "job.resume=python train.py --resume --out {run}"
    ).run.name
    assert re.fullmatch(r"fault=sigkill,job\.resume=\w{8},train-\w{8}", resumed)
