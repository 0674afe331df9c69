"""A checkpoint that says another step, mesh or number of ranks than its folder or its state is refused everywhere."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from ckptrun import ShardReader, ShardWriter
from ckptrun.checkpoint.load import load
from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.checks.saved import check_saved
from ckptrun.config.checkpoint import LoadSelection, SaveMode
from ckptrun.engine.commit import list_committed
from ckptrun.engine.consistency import contradictions, step_of
from ckptrun.engine.manifest import Manifest, read_manifest, to_bytes
from ckptrun.errors import ManifestError, SaveRefusedError
from ckptrun.evidence.starts import Failure, Start
from ckptrun.evidence.verdict import Status
from ckptrun.proof.failed import judge_failed
from ckptrun.ranks import Ranks
from ckptrun.state import Progress
from ckptrun.state.components import TrainingState
from tests.tools.run_tool import run_tool

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")

RUN = {"step": 4, "world_size": 1, "mesh": {"shard": 1}, "config": {"model": "mlp"}}


class Weights:
    def __init__(self) -> None:
        self.w = torch.ones(10)

    def state_dict(self) -> dict[str, Any]:
        return {"w": self.w}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.w = state["w"]


def save(folder: Path, run: Mapping[str, Any] = RUN, step: int = 4) -> None:
    state = {"model.w": torch.ones(10), "progress.step": step, "rng.rank_00000.torch": torch.ones(3)}
    paths = {name: tuple(name.split(".")) for name in state}
    dcp.save(state, storage_writer=ShardWriter(folder, run=run, paths=paths), no_dist=True)


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    save(tmp_path / "checkpoints/step_00000004")
    return tmp_path / "checkpoints/step_00000004"


# What is said of a run -> what the refusal says.
WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "step": ({"step": 7}, r"its manifest says step 7, but its folder is step_00000004"),
    "ranks": ({"world_size": 2}, r"its run says 2 ranks, but 1 have saved it"),
    "mesh": ({"mesh": {"replicate": 2, "shard": 2}}, r"its mesh \(replicate 2, shard 2\) has 4 ranks, but 1 have"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_save_that_would_contradict_itself_is_not_committed(tmp_path: Path, kind: str) -> None:
    changed, said = WRONG[kind]
    with pytest.raises(CheckpointException) as error:
        save(tmp_path / "step_00000004", RUN | changed)
    cause = error.value.failures[0][0]
    assert isinstance(cause, SaveRefusedError)
    cause_text = str(cause)
    with pytest.raises(SaveRefusedError, match=said):
        raise cause
    assert "Earlier checkpoints are untouched" in cause_text
    assert list_committed(tmp_path) == []


def test_progress_that_is_not_of_the_step_is_not_committed(tmp_path: Path) -> None:
    with pytest.raises(CheckpointException) as error:
        save(tmp_path / "step_00000004", step=3)
    cause = error.value.failures[0][0]
    assert "its manifest says step 4, but the saved progress.step is 3" in str(cause)
    assert cause.leaves == ("progress.step",)
    manager = CheckpointManager(
        tmp_path,
        mode=SaveMode.sync,
        keep=KeepLast(count=None),
        ranks=Ranks(None),
        saving_group=None,
        stager=None,
        facts={"config": {}, "mesh": {}},
    )
    with pytest.raises(SaveRefusedError, match=r"step_00000004 is not committed"):
        manager.save(TrainingState({"progress": Progress(step=5)}), 4)
    manager.save(TrainingState({"progress": Progress(step=5)}), 5)
    assert list_committed(tmp_path) == [5]


def test_what_a_writer_of_ones_own_says_is_not_judged_but_for_the_step(tmp_path: Path) -> None:
    save(tmp_path / "step_00000004", {"step": 4, "mesh": "any", "world_size": 9}, step=400)
    save(tmp_path / "best", {"step": 4}, step=400)
    assert contradictions(read_manifest(tmp_path / "best"), "best") == []
    with pytest.raises(CheckpointException):
        save(tmp_path / "step_00000005", {"step": 4}, step=5)


def tampered(folder: Path, **changes: Any) -> Manifest:
    """Give a checkpoint another manifest, right in itself."""
    manifest = replace(read_manifest(folder), **changes)
    (folder / "manifest.json").write_bytes(to_bytes(manifest))
    return manifest


def test_a_renamed_folder_is_found_by_load_verify_inspect_and_proof(whole: Path) -> None:
    renamed = whole.parent / "step_00000009"
    shutil.move(whole, renamed)
    with pytest.raises(ManifestError, match=r"says step 4, but its folder is step_00000009.*give it its name back"):
        load(
            TrainingState({"model": Weights(), "progress": Progress()}),
            str(renamed),
            ranks=Ranks(None),
            group=None,
            selection=LoadSelection(),
        )
    verified = run_tool("verify", renamed, "--json")
    (document,) = verified.document["checkpoints"]
    assert (verified.code, document["status"]) == (3, "damaged")
    assert [damage["kind"] for damage in document["damage"]] == ["contradiction"]
    check = check_saved([str(renamed)], damaged={})
    assert check.status is Status.different
    assert "its manifest says step 4, but its folder is step_00000009" in check.detail
    # DCP asks for bytes, which are what they were.
    into = {"model.w": torch.zeros(10)}
    dcp.load(into, storage_reader=ShardReader(renamed), no_dist=True)
    assert into["model.w"].tolist() == [1] * 10


def test_inspect_prints_the_step_of_the_state_and_what_contradicts_it(whole: Path) -> None:
    assert run_tool("inspect", whole).code == 0
    tampered(whole, run={**RUN, "step": 7})
    shown = run_tool("inspect", whole)
    assert shown.code == 3
    assert "its manifest says step 7" in shown.output
    document = run_tool("inspect", whole, "--json").document
    assert document["step"] == 4
    assert len(document["contradictions"]) == 2
    listed = run_tool("inspect", whole.parent)
    assert listed.code == 3
    assert "contradicts itself" in listed.output


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"world_size": 3}, ["its run says 1 ranks, but 3 have", "has 1 ranks, but 3 have"]),
        ({"run": {**RUN, "step": 5}}, ["its folder is step_00000004", "the saved progress.step is 4"]),
        ({"run": {key: value for key, value in RUN.items() if key != "step"}}, []),
    ],
)
def test_each_contradiction_is_told(whole: Path, changes: dict[str, Any], said: list[str]) -> None:
    found = [str(one) for one in contradictions(tampered(whole, **changes), whole.name)]
    assert len(found) == len(said)
    assert all(text in one for text, one in zip(said, found, strict=True))


def test_what_ranks_that_there_were_not_have_saved_is_told(whole: Path) -> None:
    manifest = read_manifest(whole)
    leaf = manifest.leaves["rng.rank_00000.torch"]
    leaves = {**manifest.leaves, "x": replace(leaf, name="x", path=("data", "workers_rank_00001"))}
    files = {**manifest.files, "rank_00002.safetensors": next(iter(manifest.files.values()))}
    found = [str(one) for one in contradictions(replace(manifest, leaves=leaves, files=files), whole.name)]
    assert found == [
        "it has the file rank_00002.safetensors, but 1 ranks have saved it",
        "it has the leaf 'x' of rank 1, but 1 ranks have saved it",
    ]


def test_the_step_is_that_which_a_run_would_go_on_from(whole: Path) -> None:
    manifest = read_manifest(whole)
    assert step_of(replace(manifest, run={**RUN, "step": 7}), "step_00000009") == 4
    assert step_of(replace(manifest, run={"step": 7}), "step_00000009") == 7
    assert step_of(replace(manifest, run={}), "step_00000009") == 9
    assert step_of(replace(manifest, run={"step": True}), "best") is None


def test_a_run_whose_save_was_refused_is_different_and_says_why(tmp_path: Path) -> None:
    failure = Failure(rank=0, text="not committed", leaves=["progress.step"], component="progress")
    own = judge_failed([Start(index=0, failure=failure)], "the run", why="?")
    assert own.status is Status.not_verified
    found = judge_failed([Start(index=0, failure=replace(failure, check=SaveRefusedError.check))], "the run", why="?")
    assert (found.status, found.blame) == (Status.different, "progress")
    assert "not committed" in json.dumps(found.as_json())
