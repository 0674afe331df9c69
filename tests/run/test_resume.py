"""What a start begins with: which checkpoint is loaded, what is passed over, what is said of it. One rank, no training."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ckptrun.checkpoint.load import Loaded
from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.config.checkpoint import LoadSelection, SaveMode
from ckptrun.config.run import RunConfig, to_plain
from ckptrun.engine.commit import list_committed, working_folder
from ckptrun.engine.layout import new_save_id, step_name
from ckptrun.engine.locate import locate
from ckptrun.errors import CheckpointDamagedError, CheckpointExistsError, CheckpointNotFoundError
from ckptrun.ranks import Ranks
from ckptrun.run.resume import EVERYTHING, Restorer, Resume
from tests.support.configs import config_of
from tests.support.hand_made import put_checkpoint
from tests.support.opened_files import opened_files
from tests.support.saves import live_state, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")


@dataclass
class FakeRestorer:
    """Loads nothing, and notes what it was asked for."""

    damaged: tuple[int, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)
    asked: list[tuple[str, LoadSelection]] = field(default_factory=list)
    manifests: list[Any] = field(default_factory=list)

    def load(self, built: Any, folder: str, selection: LoadSelection, *, manifest: Any = None) -> Loaded:
        self.asked.append((folder, selection))
        self.manifests.append(manifest)
        step = int(Path(folder).name.removeprefix("step_"))
        if step in self.damaged:
            raise CheckpointDamagedError(f"step {step} is cut.", folder=folder)
        return Loaded(
            folder=folder, step=step, digests=self.digests, loaded_leaves=7, world_size=2, left_out=(), run={}
        )

    @property
    def steps(self) -> list[int]:
        """Those that were tried, in order."""
        return [int(Path(folder).name.removeprefix("step_")) for folder, _ in self.asked]


class Begun:
    """A start in ``folder``, as far as it loads."""

    def __init__(self, folder: Path, *keys: str, restorer: Any = None, **checkpoint: Any) -> None:
        config: RunConfig = config_of(*keys)
        config.run.dir = str(folder)
        config.checkpoint = replace(config.checkpoint, **checkpoint)
        self.root = config.checkpoint_root
        self.config = config
        self.restorer = restorer or FakeRestorer()
        self.restarted = 0
        self.built = SimpleNamespace(restart_average=self._restart, training=SimpleNamespace(state="the state"))
        self.manager = CheckpointManager(
            self.root, mode=SaveMode.sync, keep=KeepLast(count=None), ranks=Ranks(), saving_group=None, stager=None, facts={}
        )  # fmt: skip
        self.resume = Resume(config, self.built, manager=self.manager, restorer=self.restorer, ranks=Ranks())

    def _restart(self) -> None:
        self.restarted += 1

    def load(self) -> Loaded | None:
        return self.resume.load()


def filled(folder: Path, *steps: int) -> Path:
    for step in steps:
        put_checkpoint(str(folder / "checkpoints"), step)
    return folder


def test_without_a_checkpoint_a_run_begins_anew_and_says_nothing(tmp_path, capsys) -> None:
    start = Begun(tmp_path)
    assert start.load() is None
    assert (start.restorer.asked, capsys.readouterr().out) == ([], "")


def test_the_newest_checkpoint_is_loaded_whole(tmp_path) -> None:
    start = Begun(filled(tmp_path, 2, 4))
    loaded = start.load()
    assert loaded is not None
    assert (loaded.step, start.resume.damaged) == (4, {})
    assert start.restorer.asked == [(f"{start.root}/{step_name(4)}", EVERYTHING)]


def test_the_manifest_that_is_looked_at_is_the_one_that_is_loaded_from(tmp_path, monkeypatch) -> None:
    start = Begun(filled(tmp_path, 2, 4))
    opened = opened_files(monkeypatch)
    start.load()
    assert opened == [f"{start.root}/{step_name(4)}/manifest.json"]
    assert [manifest.run["step"] for manifest in start.restorer.manifests] == [4]


def test_what_is_damaged_is_passed_over_told_and_may_be_replaced(tmp_path, capsys) -> None:
    start = Begun(filled(tmp_path, 2, 4, 6), restorer=FakeRestorer(damaged=(4, 6)))
    loaded = start.load()
    assert loaded is not None
    assert (loaded.step, start.restorer.steps) == (2, [6, 4, 2])
    assert list(start.resume.damaged.values()) == ["step 6 is cut.", "step 4 is cut."]
    told = capsys.readouterr().err
    assert told.count("DAMAGED, skipped") == 2
    assert f"DAMAGED, skipped: {start.root}/{step_name(6)}. step 6 is cut." in told
    assert {Path(folder).name for folder in start.manager._replaceable} == {step_name(4), step_name(6)}


def test_where_nothing_is_whole_nothing_is_begun_and_nothing_may_be_replaced(tmp_path) -> None:
    start = Begun(filled(tmp_path, 2, 4), restorer=FakeRestorer(damaged=(2, 4)))
    with pytest.raises(CheckpointDamagedError, match=r"^step 4 is cut. No checkpoint in "):
        start.load()
    assert start.manager._replaceable == set()


def test_a_step_that_was_asked_for_has_nothing_to_fall_back_on(tmp_path) -> None:
    start = Begun(filled(tmp_path, 2, 4), resume=4, restorer=FakeRestorer(damaged=(4,)))
    with pytest.raises(CheckpointDamagedError, match=r"Other committed steps: 2\. "):
        start.load()
    assert start.restorer.steps == [4]


def test_an_error_that_is_no_damage_is_not_passed_over(tmp_path) -> None:
    class Refuses(FakeRestorer):
        def load(self, built: Any, folder: str, selection: LoadSelection, *, manifest: Any = None) -> Loaded:
            super().load(built, folder, selection, manifest=manifest)
            raise RuntimeError("size mismatch")

    start = Begun(filled(tmp_path, 2, 4), restorer=Refuses())
    with pytest.raises(RuntimeError, match="size mismatch"):
        start.load()
    assert start.restorer.steps == [4]


def test_a_run_that_saves_nothing_says_that_it_does_not_resume(tmp_path, capsys) -> None:
    start = Begun(filled(tmp_path, 2), "checkpoint=none")
    assert start.load() is None
    assert "Not resuming: with checkpoint=none a run starts anew" in capsys.readouterr().out
    start = Begun(tmp_path, "checkpoint=none", resume=2)
    assert start.load() is not None
    assert "Not resuming" not in capsys.readouterr().out


@pytest.mark.parametrize(("choice", "is_removed"), [("sync", True), ("none", False)])
def test_leftovers_of_killed_saves_go_before_checkpoints_are_looked_for(choice, is_removed, tmp_path, capsys) -> None:
    filled(tmp_path, 2)
    left = Path(working_folder(locate(tmp_path / "checkpoints" / step_name(4)), new_save_id()).path)
    left.mkdir()
    Begun(tmp_path, f"checkpoint={choice}").load()
    assert left.exists() is not is_removed
    assert ("Removed step_00000004.tmp" in capsys.readouterr().out) is is_removed


def test_nothing_committed_is_removed_while_a_start_may_still_fail(tmp_path, capsys) -> None:
    start = Begun(filled(tmp_path, 2, 4, 6), resume=2, overwrite=True)
    start.load()
    assert list_committed(start.root) == [2, 4, 6]
    start.resume.remove_later()
    assert list_committed(start.root) == [2]
    assert "Removed the checkpoints of steps 4, 6 (overwrite=true)." in capsys.readouterr().out


def test_going_back_without_leave_loads_nothing(tmp_path) -> None:
    start = Begun(filled(tmp_path, 2, 4), resume=2)
    with pytest.raises(CheckpointExistsError):
        start.load()
    assert start.restorer.asked == []


def test_a_resume_that_goes_on_removes_nothing(tmp_path, capsys) -> None:
    start = Begun(filled(tmp_path, 2, 4), overwrite=True)
    start.load()
    start.resume.remove_later()
    assert (list_committed(start.root), capsys.readouterr().out) == ([2, 4], "")


def test_what_has_changed_since_the_checkpoint_is_said_with_both_values(tmp_path, capsys) -> None:
    plain = to_plain(config_of())
    plain["train"]["clip_norm"] = 77.0
    run = {"config": plain, "torch": "1.0", "threads": torch.get_num_threads()}
    state = {name: part for name, part in live_state(2).items() if name != "rng"}
    save(tmp_path / "checkpoints", 2, state, **run)
    Begun(tmp_path).load()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(", now")[0] for line in lines] == [
        "Changed since that checkpoint: train.clip_norm was 77.0",
        "Changed since that checkpoint: torch was '1.0'",
    ]
    assert lines[1].endswith("bits may differ.")


@pytest.mark.parametrize("only", [None, ["model", "optimizer"]])
def test_weights_to_start_from_are_loaded_alone_and_the_average_begins_with_them(only, tmp_path, capsys) -> None:
    other = filled(tmp_path / "other", 2)
    load = {"from": str(other), "allow_extra": ["model.x"], **({} if only is None else {"only": only})}
    start = Begun(tmp_path / "mine", load=load)
    assert start.load() is None
    ((folder, selection),) = start.restorer.asked
    assert Path(folder) == other / "checkpoints" / step_name(2)
    assert tuple(selection.only) == tuple(only or ["model"])
    assert list(selection.allow_extra) == ["model.x"]
    assert (start.restarted, start.resume.started_from) == (1, None)
    said = capsys.readouterr().out
    assert f"Started from 7 leaves of {folder} ({', '.join(only or ['model'])})." in said
    assert "They have no digests to compare with" in said


def test_weights_with_digests_are_compared(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("ckptrun.run.resume.check_loaded", lambda state, loaded, *, ranks: (state, loaded.step))
    load = {"from": str(filled(tmp_path / "other", 2))}
    start = Begun(tmp_path / "mine", load=load, restorer=FakeRestorer(digests={"model.w": "ff"}))
    start.load()
    assert start.resume.started_from == ("the state", 2)
    assert "no digests" not in capsys.readouterr().out


def test_a_run_that_goes_on_takes_all_of_its_own_and_nothing_of_the_other(tmp_path) -> None:
    load = {"from": str(filled(tmp_path / "other", 2))}
    start = Begun(filled(tmp_path / "mine", 4), load=load)
    assert start.load() is not None
    assert start.restorer.asked == [(f"{start.root}/{step_name(4)}", EVERYTHING)]
    assert start.restarted == 0


def test_components_that_a_resume_leaves_out_are_left_out_of_its_own(tmp_path) -> None:
    start = Begun(filled(tmp_path, 4), load={"exclude": ["rng"]})
    start.load()
    assert start.restorer.asked[0][1].exclude == ("rng",)


def test_weights_that_are_not_there_are_named_with_the_key(tmp_path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=r"^checkpoint.load.from="):
        Begun(tmp_path / "mine", load={"from": str(tmp_path / "nowhere")}).load()


@pytest.mark.parametrize(
    ("left_out", "are_new", "is_said"), [(None, True, False), ((), False, False), (("rng", "ema"), True, True)]
)
def test_streams_are_drawn_anew_only_where_no_checkpoint_has_them(left_out, are_new, is_said, monkeypatch, capsys, tmp_path) -> None:  # fmt: skip
    seeded: list[tuple[int, ...]] = []
    monkeypatch.setattr("ckptrun.run.resume.seed_streams", lambda *what: seeded.append(what))
    restorer = Restorer(seed=11, data_rank=3, ranks=Ranks(), group=None, reached=lambda point, step: None)
    start = Begun(tmp_path, restorer=restorer)
    start.built.training.progress = SimpleNamespace(step=4)
    loaded = None
    if left_out is not None:
        loaded = Loaded(
            folder="x", step=4, digests={}, loaded_leaves=1, world_size=2, left_out=left_out, run={}
        )  # fmt: skip
    start.resume.start_streams(loaded)
    assert seeded == ([(11, 4, 3)] if are_new else [])
    said = capsys.readouterr().out
    assert (
        "drawn anew from train.seed and step 4: the checkpoint's were left out (it was saved on 2 ranks)" in said
    ) is is_said
