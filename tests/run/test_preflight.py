"""What is refused before any rank starts, and which checkpoints a start may resume from. No rank is started."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckptrun.config.run import RunConfig, to_plain
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import MANIFEST, step_name
from ckptrun.errors import CheckpointDamagedError, CheckpointExistsError, CheckpointNotFoundError, ConfigError
from ckptrun.run.preflight import (
    abandoned_steps,
    changed_keys,
    check_folder,
    checkpoint_in,
    checkpoint_of,
    folders_to_resume,
    make_folder,
    none_is_whole,
    preflight,
)
from tests.support.configs import config_of
from tests.support.hand_made import put_checkpoint
from tests.support.saves import live_state, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")

STEPS = (2, 4, 6)


def run_in(folder: Path, *keys: str, **checkpoint: Any) -> RunConfig:
    """The config of a run in ``folder``."""
    config = config_of(*keys)
    config.run.dir = str(folder)
    config.checkpoint = replace(config.checkpoint, **checkpoint)
    return config


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

    monkeypatch.setattr("ckptrun.run.preflight.list_committed", refuse)
    with pytest.raises(ConfigError, match=rf"checkpoint.path=.* cannot be read: {error}"):
        folders_to_resume(run_in(tmp_path))


@pytest.mark.parametrize(("path", "root"), [(None, "checkpoints"), ("elsewhere", "elsewhere")])
def test_the_checkpoint_of_another_run_lies_where_its_config_says(path, root, tmp_path) -> None:
    path = None if path is None else str(tmp_path / path)
    (tmp_path / "config.yaml").write_text(f"checkpoint: {{path: {path or 'null'}}}\n")
    assert checkpoint_of(tmp_path, 4) == f"{tmp_path}/{root}/{step_name(4)}"


def said(folder: Path, config: RunConfig, step: int = 2, **changes: Any) -> Path:
    """A run whose checkpoint says that it was computed by ``config``, but for ``changes``: full key -> value."""
    plain = to_plain(config)
    for key, value in changes.items():
        *groups, name = key.split("__")
        section = plain
        for group in groups:
            section = section[group]
        section[name] = value
    # Of one rank.
    state = {name: part for name, part in live_state(step).items() if name != "rng"}
    save(folder / "checkpoints", step, state, config=plain)
    return folder


def test_changed_keys_are_those_that_decide_what_is_computed() -> None:
    config = config_of()
    plain = to_plain(config)
    plain["train"]["seed"] = 99
    plain["run"]["name"] = plain["launch"]["nproc"] = plain["checkpoint"]["resume"] = plain["device"] = "another"
    plain["proof"]["reload"] = plain["fault"]["seed"] = "another"
    del plain["optimizer"]["lr"]
    plain["model"]["args"] = {}
    changed = changed_keys(config, {"config": plain})
    assert changed == [
        ("model.args", {}, None),
        ("optimizer.lr", None, config.optimizer.lr),
        ("train.seed", 99, config.train.seed),
    ]
    assert changed_keys(config, {"config": to_plain(config)}) == []
    assert changed_keys(config, {}) == []


@pytest.mark.parametrize(
    ("changes", "words", "is_offered"),
    [({"model__layers": 77}, "model.layers was 77", True), ({"model__choice": "cnn"}, "model was 'cnn'", False)],
)
def test_a_checkpoint_of_another_model_is_refused_and_nothing_is_made(changes, words, is_offered, tmp_path) -> None:
    source = said(tmp_path / "mine", config_of(), **changes)
    config = run_in(source, path=str(source / "checkpoints"))
    config.run.dir = str(tmp_path / "new")
    with pytest.raises(ConfigError, match=rf"checkpoint of another model: {words}, now ") as error:
        preflight(config, world_size=1)
    # The weights of another kind of model cannot be taken over.
    assert ("checkpoint.load.from" in str(error.value)) is is_offered
    assert not (tmp_path / "new").exists()


def test_the_weights_of_a_checkpoint_of_another_optimizer_may_be_taken(tmp_path) -> None:
    config = run_in(said(tmp_path, config_of(), optimizer__choice="sgd"))
    with pytest.raises(ConfigError, match=r"another optimizer: optimizer was 'sgd', .*checkpoint.load.from="):
        preflight(config, world_size=1)


def test_what_is_not_loaded_may_differ_and_so_may_the_rest(tmp_path) -> None:
    said(tmp_path, config_of(), optimizer__choice="sgd", train__seed=99)
    preflight(run_in(tmp_path, load={"exclude": ["optimizer"]}), world_size=1)


def test_identity_is_that_of_the_newest_whole_checkpoint(tmp_path) -> None:
    said(tmp_path, config_of(), model__layers=77)
    put_checkpoint(str(tmp_path / "checkpoints"), 4)
    (tmp_path / "checkpoints" / step_name(4) / MANIFEST).write_text("{")
    with pytest.raises(ConfigError, match=r"step_00000002 is a checkpoint of another model"):
        preflight(run_in(tmp_path), world_size=1)


def test_an_older_checkpoint_of_another_model_is_no_matter(tmp_path) -> None:
    said(tmp_path, config_of(), model__layers=77)
    said(tmp_path, config_of(), step=4)
    preflight(run_in(tmp_path), world_size=1)


def test_a_start_over_damaged_checkpoints_only_is_refused_with_the_way_out(mine: Path) -> None:
    for step in STEPS:
        (mine / "checkpoints" / step_name(step) / MANIFEST).write_text("{")
    with pytest.raises(CheckpointDamagedError):
        preflight(run_in(mine), world_size=1)
    folders = folders_to_resume(run_in(mine))
    every = none_is_whole(run_in(mine), dict.fromkeys(folders, "It is cut."))
    assert str(every).startswith("It is cut. No checkpoint in ")
    assert "checkpoint.resume=none checkpoint.overwrite=true" in str(every)
    assert every.folder == folders[0]
    one = none_is_whole(run_in(mine), {folders[0]: "It is cut."})
    assert "Other committed steps: 2, 4." in str(one)
    assert "checkpoint.resume=4 checkpoint.overwrite=true" in str(one)


def test_folders_are_made_and_nothing_else_is_left(tmp_path) -> None:
    config = run_in(tmp_path / "runs/run", path=f"file://{tmp_path}/place")
    preflight(config, world_size=1)
    assert [list((tmp_path / name).iterdir()) for name in ("runs/run", "place")] == [[], []]


def test_a_folder_that_cannot_be_written_to_is_named() -> None:
    # Nobody makes files there, whatever they may.
    with pytest.raises(ConfigError, match=r"^run.dir=/proc cannot be written: "):
        make_folder("run.dir", run_in(Path("/proc")))


def test_what_saves_nothing_needs_no_place_for_it(tmp_path) -> None:
    preflight(run_in(tmp_path / "run", "checkpoint=none", path=str(tmp_path / "place")), world_size=1)
    assert not (tmp_path / "place").exists()


@pytest.mark.parametrize("key", ["run.dir", "checkpoint.path"])
def test_a_folder_below_a_file_cannot_be_made_and_the_other_is_not(key, tmp_path) -> None:
    (tmp_path / "file").touch()
    places = {"run.dir": tmp_path / "run", "checkpoint.path": tmp_path / "place", key: tmp_path / "file/below"}
    config = run_in(places["run.dir"], path=str(places["checkpoint.path"]))
    with pytest.raises(
        ConfigError, match=rf"^{key}={tmp_path}/file/below cannot be made: {tmp_path}/file is no folder"
    ):
        preflight(config, world_size=1)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_memory_of_one_process_is_no_place_for_many_ranks(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_in(tmp_path / "run", path="memory://here")
    with pytest.raises(ConfigError, match="there are 2 ranks"):
        preflight(config, world_size=2)
    preflight(config, world_size=1)
    # What is no folder is not made as one.
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_files_to_train_on_must_be_there(tmp_path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        preflight(run_in(tmp_path / "run", "data=text", "data.files=[nowhere.txt]"), world_size=1)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("there", [(), ("config.yaml",), ("ledger",)])
def test_a_reference_must_be_a_run(there, tmp_path) -> None:
    for name in there:
        (tmp_path / "reference" / name).mkdir(parents=True)
    config = run_in(tmp_path / "run")
    config.proof.reference = str(tmp_path / "reference")
    missing = "ledger" if there == ("config.yaml",) else "config.yaml"
    with pytest.raises(ConfigError, match=rf"is no run to compare with: .*/reference/{missing} does not exist"):
        preflight(config, world_size=1)


@pytest.mark.parametrize("reference", ["{run}", "run", "~/run"])
def test_a_run_is_not_its_own_reference(reference, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("config.yaml", "ledger"):
        (tmp_path / "run" / name).mkdir(parents=True)
    config = run_in(tmp_path / "run")
    config.proof.reference = reference.format(run=tmp_path / "run")
    with pytest.raises(ConfigError, match="is this run's own folder"):
        preflight(config, world_size=1)


def test_weights_to_start_from_must_be_there_unless_the_run_goes_on(tmp_path, mine: Path) -> None:
    load = {"from": str(tmp_path / "nowhere")}
    with pytest.raises(CheckpointNotFoundError, match=r"checkpoint.load.from="):
        preflight(run_in(tmp_path / "new", load=load), world_size=1)
    preflight(run_in(mine, load=load), world_size=1)


@pytest.mark.parametrize(
    ("what", "before", "mark"),
    [
        ("run", "checkpoints", "events.jsonl"),
        ("run", "ledger", "run.lock"),
        ("run", "ledger", "proof.json"),
        ("run", "ledger", "proof.lock"),
        ("proof", "run.lock", "proof.json"),
    ],
)
def test_neither_a_run_nor_a_proof_takes_a_folder_with_somebody_elses_files(what, before, mark, tmp_path) -> None:
    in_proof = what == "proof"
    check_folder(tmp_path / "not there", in_proof=in_proof)
    (tmp_path / before).mkdir()
    check_folder(tmp_path, in_proof=in_proof)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=rf"holds 'thesis.tex' and was not made by a {what}, which"):
        check_folder(tmp_path, in_proof=in_proof)
    (tmp_path / mark).touch()
    check_folder(tmp_path, in_proof=in_proof)


def test_a_proof_removes_nothing_that_a_run_may_go_on_from(tmp_path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "events.jsonl").touch()
    check_folder(tmp_path, in_proof=False)
    with pytest.raises(ConfigError, match=r"holds 'checkpoints' and was not made by a proof"):
        check_folder(tmp_path, in_proof=True)


@pytest.mark.parametrize("in_proof", [True, False])
def test_a_file_is_no_folder_of_a_run(in_proof, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"file is no folder"):
        check_folder(tmp_path / "file", in_proof=in_proof)
