"""What is refused before any rank starts. No rank is started."""

from pathlib import Path
from typing import Any

import pytest

from ckptrun.config.run import RunConfig, to_plain
from ckptrun.engine.layout import MANIFEST, step_name
from ckptrun.errors import CheckpointDamagedError, CheckpointNotFoundError, ConfigError
from ckptrun.run.conditions import changed_keys
from ckptrun.run.preflight import check_folder, make_folder, preflight
from tests.support.configs import config_of, run_in
from tests.support.hand_made import put_checkpoint
from tests.support.saves import live_state, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")


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


def test_a_start_over_damaged_checkpoints_only_is_refused(tmp_path) -> None:
    put_checkpoint(str(tmp_path / "checkpoints"), 4)
    (tmp_path / "checkpoints" / step_name(4) / MANIFEST).write_text("{")
    with pytest.raises(CheckpointDamagedError):
        preflight(run_in(tmp_path), world_size=1)


def test_folders_are_made_and_nothing_else_is_left(tmp_path) -> None:
    config = run_in(tmp_path / "runs/run", path=f"file://{tmp_path}/place")
    preflight(config, world_size=1)
    assert [list((tmp_path / name).iterdir()) for name in ("runs/run", "place")] == [[], []]


def test_a_folder_that_cannot_be_written_to_is_named() -> None:
    # Nobody makes files there, whatever they may.
    with pytest.raises(ConfigError, match=r"^run.dir=/proc cannot be written: "):
        make_folder("run.dir", run_in(Path("/proc")))


@pytest.mark.parametrize("in_proof", [True, False])
def test_a_start_that_was_killed_while_it_tried_its_folder_is_in_nobodys_way(in_proof, tmp_path, monkeypatch) -> None:
    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Path, "unlink", kill)
        make_folder("run.dir", run_in(tmp_path))
    assert list(tmp_path.iterdir()) != []
    check_folder(tmp_path, in_proof=in_proof)
    make_folder("run.dir", run_in(tmp_path))
    assert list(tmp_path.iterdir()) == []


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


def test_weights_to_start_from_must_be_there_unless_the_run_goes_on(tmp_path) -> None:
    put_checkpoint(str(tmp_path / "mine/checkpoints"), 4)
    load = {"from": str(tmp_path / "nowhere")}
    with pytest.raises(CheckpointNotFoundError, match=r"checkpoint.load.from="):
        preflight(run_in(tmp_path / "new", load=load), world_size=1)
    preflight(run_in(tmp_path / "mine", load=load), world_size=1)


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
