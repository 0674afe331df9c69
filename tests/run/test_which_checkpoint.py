"""Which checkpoints a start may resume from, and what it may remove for that. Nothing is loaded."""

from pathlib import Path

import pytest

from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import MANIFEST, step_name
from ckptrun.errors import CheckpointExistsError, CheckpointNotFoundError, ConfigError
from ckptrun.run.which_checkpoint import (
    abandoned_steps,
    checkpoint_in,
    checkpoint_of,
    folders_to_resume,
    none_is_whole,
)
from tests.support.configs import run_in
from tests.support.hand_made import put_checkpoint

STEPS = (2, 4, 6)


def filled(folder: Path, *steps: int) -> Path:
    """A folder of a run with checkpoints."""
    for step in steps or STEPS:
        put_checkpoint(str(folder / "checkpoints"), step)
    return folder


def steps_of(folders: list[str]) -> list[int]:
    return [int(Path(folder).name.removeprefix("step_")) for folder in folders]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    return filled(tmp_path / "mine")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return filled(tmp_path / "other", 1, 3)


def test_auto_takes_the_newest_and_falls_back(mine: Path) -> None:
    folders = folders_to_resume(run_in(mine))
    assert steps_of(folders) == [6, 4, 2]
    assert Path(folders[0]).parent == mine / "checkpoints"


def test_auto_begins_anew_where_there_is_none(tmp_path) -> None:
    assert folders_to_resume(run_in(tmp_path)) == []


def test_a_run_that_saves_nothing_resumes_only_if_told(mine: Path) -> None:
    assert folders_to_resume(run_in(mine, "checkpoint=none")) == []
    assert steps_of(folders_to_resume(run_in(mine, "checkpoint=none", resume=6))) == [6]


@pytest.mark.parametrize(("resume", "kept"), [("none", ()), (2, (2,)), (4, (2, 4))])
def test_going_back_must_be_allowed_to_remove_what_is_later(resume, kept, mine: Path) -> None:
    later = ", ".join(str(step) for step in STEPS if step not in kept)
    with pytest.raises(CheckpointExistsError, match=rf"checkpoint.resume={resume} .*committed steps: {later}\)"):
        folders_to_resume(run_in(mine, resume=resume))
    config = run_in(mine, resume=resume, overwrite=True)
    assert steps_of(folders_to_resume(config)) == list(kept[-1:])
    assert abandoned_steps(config) == [step for step in STEPS if step not in kept]
    assert list_committed(str(mine / "checkpoints")) == list(STEPS)


def test_the_newest_step_by_its_number_leaves_nothing_behind(mine: Path) -> None:
    config = run_in(mine, resume=6)
    assert steps_of(folders_to_resume(config)) == [6]
    assert abandoned_steps(config) == []


def test_beginning_anew_leaves_nothing_behind(tmp_path) -> None:
    filled(tmp_path, 0)
    with pytest.raises(CheckpointExistsError, match=r"committed steps: 0\)"):
        folders_to_resume(run_in(tmp_path, resume="none"))
    assert abandoned_steps(run_in(tmp_path, resume="none", overwrite=True)) == [0]
    filled(tmp_path, 2)
    with pytest.raises(CheckpointExistsError, match=r"committed steps: 2\)"):
        folders_to_resume(run_in(tmp_path, resume=f"{tmp_path}/checkpoints/{step_name(0)}"))
    assert abandoned_steps(run_in(tmp_path, resume=f"{tmp_path}/checkpoints/{step_name(0)}", overwrite=True)) == [2]


def test_a_step_that_is_not_there_is_named_with_those_that_are(mine: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint of step 5 .*committed steps: 2, 4, 6\)"):
        folders_to_resume(run_in(mine, resume=5, overwrite=True))
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint of step 5 .*committed steps: none\)"):
        folders_to_resume(run_in(mine / "elsewhere", resume=5))


def test_without_a_word_nothing_is_abandoned(mine: Path) -> None:
    assert abandoned_steps(run_in(mine, overwrite=True)) == []
    assert abandoned_steps(run_in(mine, resume=2)) == []


def test_another_runs_checkpoint_is_begun_with_and_then_ones_own_are_gone_on_with(tmp_path, other: Path) -> None:
    place = str(other / "checkpoints" / step_name(1))
    mine = tmp_path / "mine"
    assert folders_to_resume(run_in(mine, resume=place)) == [place]
    filled(mine, 2, 4)
    assert steps_of(folders_to_resume(run_in(mine, resume=place))) == [4, 2]
    again = run_in(mine, resume=place, overwrite=True)
    assert folders_to_resume(again) == [place]
    assert abandoned_steps(again) == [2, 4]


def test_ones_own_checkpoint_by_its_place_is_going_back(mine: Path) -> None:
    place = f"file://{mine}/checkpoints/{step_name(4)}"
    with pytest.raises(CheckpointExistsError, match=r"committed steps: 6\)"):
        folders_to_resume(run_in(mine, resume=place))
    config = run_in(mine, resume=place, overwrite=True)
    assert folders_to_resume(config) == [place]
    assert abandoned_steps(config) == [6]


@pytest.mark.parametrize("place", ["", "/checkpoints", "/checkpoints/", f"/checkpoints/{step_name(3)}"])
def test_a_place_is_a_run_a_folder_of_checkpoints_or_one_of_them(place, other: Path) -> None:
    found = checkpoint_in(f"{other}{place}", key="checkpoint.resume")
    assert Path(found) == other / "checkpoints" / step_name(3)


def test_a_place_without_a_checkpoint_is_named_with_its_key(tmp_path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=rf"^checkpoint.load.from={tmp_path} is no checkpoint"):
        checkpoint_in(str(tmp_path), key="checkpoint.load.from")


def test_a_place_that_cannot_be_read_is_a_mistake_in_the_config(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint.path=nosuch://x/y cannot be read"):
        folders_to_resume(run_in(tmp_path, path="nosuch://x/y"))


@pytest.mark.parametrize("error", [PermissionError("not yours"), ImportError("install s3fs")])
def test_why_a_place_cannot_be_read_is_told(error, tmp_path, monkeypatch) -> None:
    def refuse(_: object) -> None:
        raise error

    monkeypatch.setattr("ckptrun.run.which_checkpoint.list_committed", refuse)
    with pytest.raises(ConfigError, match=rf"checkpoint.path=.* cannot be read: {error}"):
        folders_to_resume(run_in(tmp_path))


@pytest.mark.parametrize(("path", "root"), [(None, "checkpoints"), ("elsewhere", "elsewhere")])
def test_the_checkpoint_of_another_run_lies_where_its_config_says(path, root, tmp_path) -> None:
    path = None if path is None else str(tmp_path / path)
    (tmp_path / "config.yaml").write_text(f"checkpoint: {{path: {path or 'null'}}}\n")
    assert checkpoint_of(tmp_path, 4) == f"{tmp_path}/{root}/{step_name(4)}"


def test_where_none_is_whole_the_way_out_is_told(mine: Path) -> None:
    for step in STEPS:
        (mine / "checkpoints" / step_name(step) / MANIFEST).write_text("{")
    folders = folders_to_resume(run_in(mine))
    every = none_is_whole(run_in(mine), dict.fromkeys(folders, "It is cut."))
    assert str(every).startswith("It is cut. No checkpoint in ")
    assert "checkpoint.resume=none checkpoint.overwrite=true" in str(every)
    assert every.folder == folders[0]
    one = none_is_whole(run_in(mine), {folders[0]: "It is cut."})
    assert "Other committed steps: 2, 4." in str(one)
    assert "checkpoint.resume=4 checkpoint.overwrite=true" in str(one)
