"""What a user can get wrong on the command line: one line, exit code 2, the nearest name, and nothing touched."""

import signal
import sys
from pathlib import Path

import pytest

from ckptrun.__main__ import main
from ckptrun.config.choices import CONF_DIR
from ckptrun.config.compose import checked, config_from, plain_overrides, register
from ckptrun.config.keys import all_keys
from ckptrun.config.mistakes import FAULTS_OF_A_CONFIG, explained
from ckptrun.config.nearest import did_you_mean
from ckptrun.errors import ConfigError


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs a command line that must be refused; gives the one line that is said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)

    def run(*arguments: str) -> str:
        before = sorted(str(path) for path in tmp_path.rglob("*"))
        answer = signal.getsignal(signal.SIGTERM)
        monkeypatch.setattr(sys, "argv", ["ckptrun", *arguments])
        with pytest.raises(SystemExit) as ended:
            sys.exit(main())
        printed, said = capsys.readouterr()
        assert ended.value.code == 2, said
        assert printed == ""
        assert said.startswith("ckptrun: ")
        assert said.count("\n") == 1, said
        for word in ("Traceback", "+train", "HYDRA", "hydra.cc", "append to your config", "omegaconf", "object_type"):
            assert word not in said
        assert sorted(str(path) for path in tmp_path.rglob("*")) == before, "something was touched"
        assert signal.getsignal(signal.SIGTERM) is answer
        return said.removeprefix("ckptrun: ").rstrip("\n")

    return run


# These are seen before anything is composed.
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verfy"], "'verfy' is neither a command nor KEY=VALUE; did you mean verify?"),
        (["verfy", "somewhere"], "'verfy' is neither a command nor KEY=VALUE; did you mean verify?"),
        (["train.steps=2", "insepct"], "'insepct' is neither a command nor KEY=VALUE; did you mean inspect?"),
        (["fsdp"], "'fsdp' is neither a command nor KEY=VALUE; did you mean parallelism=fsdp?"),
        (["model"], "'model' needs a choice: model=cnn|custom|gpt|mlp|moe."),
        (["train.steps"], "'train.steps' needs a value: train.steps=..."),
        (["model=gtp"], "model=gtp: there is no such choice; did you mean gpt? Choices: cnn, custom, gpt, mlp, moe."),
        (["experiment=smoek"], "experiment=smoek: there is no such choice; did you mean smoke? Choices: kill_matrix, reshard, smoke."),
        (["model=null"], "model=null: there is no such choice. Choices: cnn, custom, gpt, mlp, moe."),
        (["-m", "model=mlp,cnnn"], "model=cnnn: there is no such choice; did you mean cnn? Choices: cnn, custom, gpt, mlp, moe."),
        (["model=[gpt,mlp]"], "model=['gpt', 'mlp']: model takes the name of one choice: cnn, custom, gpt, mlp, moe."),
        (["-m", "train.steps=range(0)"], "train.steps=range(0) gives no value, so there is nothing to run."),
        (["-m", "train.steps=range(4,4)"], "train.steps=range(4,4) gives no value, so there is nothing to run."),
        (["-m", "train.steps=range(0,4,0)"], "train.steps=range(0,4,0) gives no value: the step is 0."),
        (["train.steps=[1"], "train.steps=[1 cannot be read as KEY=VALUE."),
        (["run.name=a b=c{"], "run.name=a b=c{ cannot be read as KEY=VALUE."),
        (
            ["checkpoint.resume=a=b,c=d"],
            "checkpoint.resume=a=b,c=d cannot be read as KEY=VALUE. Close brackets and quotes, and quote a value that has "
            """spaces, commas, brackets or '=' in it twice: 'checkpoint.resume="a=b,c=d"'.""",
        ),
        (["@x=1"], "@x=1: no choice of a group has such a name."),
        (["=3"], "=3 has a value and no key; write KEY=VALUE."),
        (["~model"], "~model: a run cannot be without it; choose another one with model=cnn|custom|gpt|mlp|moe."),
        (["~train.steps"], "~train.steps: a key of the config cannot be taken away; leave it out to get its default."),
        (["train.step=3"], "train.step: there is no such key; did you mean train.steps?"),
        (["~train.stepz"], "~train.stepz: there is no such key; did you mean train.steps?"),
        (["--multirn"], "--multirn: there is no such option; did you mean --multirun?"),
        (["--cfg", "jobb"], "Argument --cfg/-c: invalid choice: 'jobb'"),
        (["--config-dir", "nowhere"], "--config-dir nowhere: there is no such folder."),
        (["--experimental-rerun", "a.pickle"], "--experimental-rerun: there is no such option;"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_in_one_argument_is_said_before_anything_is_composed(refused, arguments, said) -> None:
    assert refused(*arguments).startswith(said)


# These need the whole config; each costs a composition.
@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.stepz=3"], "train.stepz: there is no such key; did you mean train.steps?"),
        (["+train.stepz=3"], "train.stepz: there is no such key; did you mean train.steps?"),
        (["++foo=1"], "foo: there is no such key; keys begin with"),
        (["steps=3"], "steps: there is no such key; did you mean train.steps?"),
        (["modle=gpt"], "modle: there is no such key; did you mean model?"),
        (["model=mlp", "data=random", "model.width=3"], "model.width is no key of model=mlp; it is one of model=gpt, model=moe."),
        (["++optimizer.args.x=1"], "optimizer.args is no key of optimizer=adamw; it is one of optimizer=custom."),
        (["train.steps=many"], "train.steps=many: must be a whole number."),
        (["train.steps=1,2"], "train.steps=1,2 has several values: begin the command with -m"),
        (["train.steps=${oc.env:NOT_SET_ANYWHERE}"], "train.steps=${oc.env:NOT_SET_ANYWHERE} cannot be resolved: Environment variable"),
        (["train.steps=2", "train.steps=${train.stepz}"], "train.steps=${train.stepz} cannot be resolved: Interpolation key 'train.stepz' not found. Did you mean train.steps?"),
        (["train.steps=${train.steps}"], "train.steps=${train.steps} cannot be resolved: Recursive interpolation"),
        (["components.c._target_=a.B", "components.c.args=null"], "components.c must be {_target_: my_module.MyClass, args: {...}}"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_mistake_in_the_config_is_one_line(refused, overrides, said) -> None:
    assert refused(*overrides).startswith(said)


def test_a_plus_changes_nothing_for_a_key_that_exists() -> None:
    assert plain_overrides(["+train.steps=3", "++train.steps=3", "train.steps=3"]) == ["train.steps=3"] * 3
    # The dicts of the user's own need it, and a group that a folder of the user's own adds.
    assert plain_overrides(["model.args.width=3", "+components.a._target_=b.C"]) == [
        "++model.args.width=3",
        "++components.a._target_=b.C",
    ]
    assert plain_overrides(["+cluster=big"], added_groups=["cluster"]) == ["+cluster=big"]


WRONG = [
    None,
    [],
    {},
    "x",
    -1,
    1.5,
    [1, "a", None],
    {"a": None},
    "${oc.env:NOT_SET_ANYWHERE}",
    "???",
    [[]],
    float("nan"),
    10**30,
]


def test_no_value_of_a_key_ends_in_anything_but_one_line_or_a_config(monkeypatch) -> None:
    """Refused in one line that names the key, or taken."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    monkeypatch.delenv("NOT_SET_ANYWHERE", raising=False)
    register()
    needed = {
        "model=mlp": ["data=random"],
        "model=cnn": ["data=shapes"],
        "data=shapes": ["model=cnn"],
        "data=text": ["data.files=[a]"],
    }
    refusals, seen = 0, []
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        composed: dict[tuple[str, ...], object] = {}
        for key, having in all_keys().items():
            choice = having[-1] if having else ""
            group = choice.partition("=")[0]
            custom = [f"{group}._target_=a.B"] if choice.endswith("=custom") else []
            overrides = (*([choice] if choice else []), *needed.get(choice, []), *custom)
            if overrides not in composed:
                composed[overrides] = compose("config", overrides=list(overrides))
            # Each key with some of them, so that all types of keys meet all types of values.
            number = len(seen)
            seen.append(key)
            for value in (WRONG[(number * 3 + place) % len(WRONG)] for place in range(3)):
                config = composed[overrides].copy()  # type: ignore[attr-defined]
                try:
                    OmegaConf.update(config, key, value, merge=True)
                    checked(config, overrides=[f"{key}={value}"], experiment=None)
                except FAULTS_OF_A_CONFIG as error:
                    said = str(explained(error, [f"{key}={value}"]))
                except ConfigError as error:
                    said = str(error)
                else:
                    continue
                refusals += 1
                assert "\n" not in said
                assert key.rpartition(".")[2] in said or key == "fault.more", (key, value, said)
    assert refusals > 150


def test_a_wrong_file_of_choices_is_named(refused, tmp_path) -> None:
    files = {
        "unknown_key": "# @package _global_\ntrain:\n  stepz: 3\n",
        "wrong_type": "# @package _global_\ntrain:\n  steps: many\n",
        "no_yaml": "train: [1,\n  {\n",
        "no_choice": "# @package _global_\ndefaults:\n  - override /model: gtp\n",
    }
    for name, text in files.items():
        file = tmp_path / "mine/experiment" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    said = {name: refused("--config-dir", "mine", f"experiment={name}") for name in files}
    assert (
        said["unknown_key"]
        == "In experiment/unknown_key.yaml: train.stepz: there is no such key; did you mean train.steps?"
    )
    assert said["wrong_type"] == "In experiment/wrong_type.yaml: train.steps: must be a whole number."
    assert f"{tmp_path}/mine/experiment/no_yaml.yaml, line " in said["no_yaml"]
    assert "model=gtp: there is no such choice; did you mean gpt?" in said["no_choice"]


def test_a_folder_of_choices_of_ones_own_is_taken(monkeypatch, capsys, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {
        "model/tiny": "defaults: [gpt]\nwidth: 32\nheads: 2\n",
        "cluster/big": "# @package train\nsteps: 7\n",
    }.items():
        file = tmp_path / "mine" / f"{name}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(sys, "argv", ["ckptrun", "--config-dir", "mine", "model=tiny", "+cluster=big", "--cfg", "job"])
    with pytest.raises(SystemExit) as ended:
        sys.exit(main())
    printed, said = capsys.readouterr()
    assert (ended.value.code, said) == (0, "")
    assert "  width: 32\n" in printed
    assert "  steps: 7\n" in printed


@pytest.mark.parametrize("place", ["a file", "below a file", "strangers", "a folder for a file"])
def test_a_sweep_leaves_what_is_not_its_own(refused, tmp_path, place) -> None:
    if place.endswith("file") and "folder" not in place:
        (tmp_path / "there").write_text("a file")
    else:
        (tmp_path / "there" / ("multirun.yaml" if "folder" in place else "notes.txt")).mkdir(parents=True)
    folder = "there/below" if place.startswith("below") else "there"
    said = refused("-m", "model=mlp", "data=random", "train.steps=1,2", f"run.dir={folder}")
    assert said.startswith(f"run.dir={tmp_path}/{folder}")
    assert said.endswith("Choose another one." if "a file" in place and "folder" not in place else "run.name=...")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("train.stepz", "did you mean train.steps?"),
        ("trian.steps", "did you mean train.steps?"),
        ("steps", "did you mean train.steps?"),
        ("train.momentum", "did you mean optimizer.momentum?"),
        ("train.zzz", ""),
        ("launch.timeout", "did you mean launch.timeout_seconds?"),
    ],
)
def test_the_nearest_name_is_found(name, near) -> None:
    assert did_you_mean(name, all_keys()) == near


def test_python_callers_get_the_same_line() -> None:
    with pytest.raises(ConfigError) as caught:
        config_from(["+train.stepz=3"])
    assert str(caught.value) == "train.stepz: there is no such key; did you mean train.steps?"


def test_every_folder_of_choices_is_known() -> None:
    assert {path.parent.name for path in Path(CONF_DIR).glob("*/*.yaml")} <= {
        key.partition(".")[0] for key in all_keys()
    } | {"experiment"}
