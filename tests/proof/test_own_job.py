"""The config that the ranks of each run of a proof are given: the same in all that is computed. No rank is started."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckptrun.config.checkpoint import SaveMode
from ckptrun.config.choices import CONF_DIR
from ckptrun.config.proof import ReloadCheck
from ckptrun.config.run import RunConfig, to_plain
from ckptrun.launch.local import Outcome, RanksToStart
from ckptrun.proof.preflight import reshaped
from ckptrun.run.conditions import deciding_keys
from ckptrun.run.leg import Leg
from tests.support.configs import config_of
from tests.support.hand_made import own_job, put_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")

SAVING = sorted(path.stem for path in (CONF_DIR / "checkpoint").glob("*.yaml") if path.stem != "none")


class Job:
    """A subject whose starts are looked at, and not made."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, *keys: str, **checkpoint: Any) -> None:
        self.config = config_of("fault=sigkill", "parallelism=ddp", "launch.nproc=2", *keys)
        self.config.run.dir = str(folder / "run")
        self.config.checkpoint = replace(self.config.checkpoint, **checkpoint)
        after = reshaped(self.config) if self.config.proof.reshapes else self.config
        self.subject = own_job(self.config, after, command=["ckptrun", "fault=sigkill"])
        self.asked: list[RanksToStart] = []
        monkeypatch.setattr("ckptrun.proof.own_job.start_ranks", self._start)

    def _start(self, what: RanksToStart) -> Outcome:
        self.asked.append(what)
        return Outcome(exit_code=0)

    def given(self, name: str, leg: Leg | None = None, **run: Any) -> RunConfig:
        """The config that the ranks of a run are given."""
        wanted = self.subject.run(name, **run)
        self.subject.start(wanted, leg or Leg(name=name))
        config = self.asked[-1].arguments[0]
        assert isinstance(config, RunConfig)
        return config


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    return Job(tmp_path, monkeypatch)


def test_ranks_are_started_with_the_leg_and_the_command_line(job: Job) -> None:
    leg = Leg(name="run", start=2, in_proof=True, fresh=True, stop_at=4)
    job.given("run", leg)
    (what,) = job.asked
    command, given = what.arguments[1:]
    assert command == ["ckptrun", "fault=sigkill"]
    assert given.files is not None
    assert replace(given, files=None) == leg
    assert (what.count, what.in_proof, what.fresh, what.run_dir) == (2, True, True, job.config.run_dir)


def test_a_start_is_looked_at_before_it_is_made_and_says_how_long_it_took(tmp_path, monkeypatch) -> None:
    job = Job(tmp_path, monkeypatch, "proof.resume_parallelism=fsdp", "proof.resume_nproc=3")
    seen: list[tuple[Path, int]] = []
    monkeypatch.setattr(
        "ckptrun.proof.own_job.preflight", lambda config, *, world_size: seen.append((config.run_dir, world_size))
    )
    monkeypatch.setattr("ckptrun.proof.own_job.time", SimpleNamespace(monotonic=iter([5.0, 7.5]).__next__))
    run = job.subject.run("resumed_reference", is_later=True, saves=False)
    kept = put_checkpoint(run.checkpoints, 2)
    assert job.subject.start(run, Leg(name=run.name)).seconds == 2.5
    assert seen == [(run.folder, 3)]
    # What does not save puts nothing in the place of what lies there.
    assert Path(kept).is_dir()


@pytest.mark.parametrize("choice", SAVING)
@pytest.mark.parametrize("name", ["run", "reference", "traced_run"])
def test_whatever_the_mode_every_run_that_saves_saves_the_same_way(choice, name, tmp_path, monkeypatch) -> None:
    job = Job(tmp_path, monkeypatch, f"checkpoint={choice}")
    given = job.given(name).checkpoint
    assert given.mode is not SaveMode.none
    assert given == replace(job.config.checkpoint, resume="auto")


@pytest.mark.parametrize("choice", SAVING)
def test_whatever_the_mode_a_run_that_shall_not_save_does_not(choice, tmp_path, monkeypatch) -> None:
    job = Job(tmp_path, monkeypatch, f"checkpoint={choice}")
    given = job.given("controls", saves=False).checkpoint
    assert (given.mode, given.resume) == (SaveMode.none, "none")


@pytest.mark.parametrize("overlapped", [True, False])
def test_only_what_saves_can_overlap_its_copies(overlapped, tmp_path, monkeypatch) -> None:
    job = Job(tmp_path, monkeypatch, "checkpoint=async", f"checkpoint.overlapped_staging={overlapped}")
    assert job.given("reference").checkpoint.overlapped_staging is overlapped
    assert not job.given("controls", saves=False).checkpoint.overlapped_staging


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("run", {}),
        ("reference", {}),
        ("resumed_reference", {"is_later": True, "resume_from": "there"}),
        ("controls", {"saves": False}),
    ],
)
def test_what_decides_what_is_computed_is_the_same_in_all(name, options, job: Job) -> None:
    if "resume_from" in options:
        options = {**options, "resume_from": put_checkpoint(f"{job.config.run_dir}/checkpoints", 2)}
    given = job.given(name, **options)
    assert deciding_keys(to_plain(given)) == deciding_keys(to_plain(job.config))


def test_what_stands_beside_the_run_is_not_proved_itself(tmp_path, monkeypatch) -> None:
    job = Job(tmp_path, monkeypatch, "fault=none", "proof=full", "proof.reload=every_save", "proof.controls=none")
    job.config.proof.reference = str(tmp_path / "other")
    beside, run = job.given("reference").proof, job.given("run").proof
    assert (beside.full, beside.reload, beside.reference) == (False, ReloadCheck.none, None)
    assert (run.full, run.reload, run.reference) == (True, ReloadCheck.every_save, None)
    # What is compared, and how, is the same.
    assert (beside.digest_every_steps, beside.ignore) == (run.digest_every_steps, run.ignore)


def test_a_run_beside_has_a_folder_and_checkpoints_of_its_own(job: Job) -> None:
    run, beside = job.subject.run("run"), job.subject.run("reference")
    assert (run.folder, run.checkpoints) == (job.config.run_dir, f"{job.config.run_dir}/checkpoints")
    assert (beside.folder, beside.checkpoints) == (
        job.config.run_dir / "proof/reference",
        f"{job.config.run_dir}/proof/reference/checkpoints",
    )
    given = job.given("reference")
    assert (given.run_dir, given.checkpoint.path, given.checkpoint_root) == (beside.folder, None, beside.checkpoints)


def test_where_checkpoints_have_a_place_those_of_a_run_beside_lie_beside_it(tmp_path, monkeypatch) -> None:
    place = str(tmp_path / "place")
    job = Job(tmp_path, monkeypatch, path=place)
    assert job.given("run").checkpoint.path == job.subject.run("run").checkpoints == place
    assert job.given("reference").checkpoint.path == f"{place}/proof/reference"
    assert job.subject.run("reference").checkpoint(6) == f"{place}/proof/reference/step_00000006"


def test_a_checkpoint_that_a_run_is_given_comes_before_all_others(tmp_path, monkeypatch) -> None:
    elsewhere = put_checkpoint(str(tmp_path / "other"), 2)
    job = Job(tmp_path, monkeypatch, resume=elsewhere)
    mine = put_checkpoint(str(tmp_path / "mine"), 4)
    assert job.given("resumed_reference", resume_from=mine).checkpoint.resume == mine
    # Somebody else's checkpoint is what all others begin with, controls too.
    assert job.given("run").checkpoint.resume == elsewhere
    assert job.given("reference").checkpoint.resume == elsewhere
    assert job.given("controls", saves=False).checkpoint.resume == elsewhere


@pytest.mark.parametrize("resume", ["auto", "none", 4])
def test_what_is_no_place_is_left_to_each_run(resume, tmp_path, monkeypatch) -> None:
    job = Job(tmp_path, monkeypatch, resume=resume)
    assert job.given("run").checkpoint.resume == "auto"
    assert job.given("reference").checkpoint.resume == "auto"
    assert job.given("controls", saves=False).checkpoint.resume == "none"


def test_a_later_run_is_on_the_other_mesh(tmp_path, monkeypatch) -> None:
    job = Job(tmp_path, monkeypatch, "proof.resume_parallelism=fsdp", "proof.resume_nproc=3")
    assert job.subject.reshapes
    assert (job.subject.run("run").ranks, job.subject.run("run", is_later=True).ranks) == (2, 3)
    assert job.given("run").parallelism == job.config.parallelism
    assert (job.given("run", is_later=True).parallelism.kind, job.asked[-1].count) == ("fsdp", 3)


def test_a_run_beside_begins_in_an_empty_place_and_the_one_under_proof_goes_on(job: Job) -> None:
    run, beside = job.subject.run("run"), job.subject.run("reference")
    for place in (run, beside):
        put_checkpoint(place.checkpoints, 2)
        (place.folder / "trace").mkdir()
    for place in (run, beside):
        job.subject.start(place, Leg(name=place.name))
    assert Path(run.checkpoint(2)).is_dir()
    assert not Path(beside.checkpoint(2)).exists()
    assert not any((place.folder / "trace").exists() for place in (run, beside))


def test_the_other_interpreter_is_prepared(job: Job, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr("ckptrun.proof.own_job.start_fork_server", lambda *_, **what: asked.append(what))
    job.subject.prepare()
    assert asked == [{"in_proof": True, "fresh": True}]


def test_what_a_proof_may_know_of_the_job_is_what_its_config_says(tmp_path, monkeypatch) -> None:
    subject = Job(tmp_path, monkeypatch, "train.steps=9", "checkpoint.keep_last=2", "precision=bf16").subject
    assert (subject.steps, subject.keep_last, subject.reshapes) == (9, 2, False)
    assert subject.precision.kind == "bf16"


def test_a_full_proof_stops_where_its_config_says(tmp_path, monkeypatch) -> None:
    subject = Job(tmp_path, monkeypatch, "fault=none", "proof=full", "train.steps=9").subject
    assert list(subject.stops) == [5, 7]


def test_code_of_the_user_is_named_by_the_key_that_chose_it(tmp_path, monkeypatch) -> None:
    keys = ("model=custom", "model._target_=mine.Net", "model.loss=mse", "components.timer._target_=mine.Timer")
    subject = Job(tmp_path, monkeypatch, *keys, "data=random").subject
    assert subject.code_of("model") == " It is model._target_=mine.Net."
    assert subject.code_of("timer") == " It is components.timer._target_=mine.Timer."
    assert [subject.code_of(component) for component in ("optimizer", "schedule", "data", "rng", None)] == [""] * 5
    groups = ("model", "optimizer", "schedule", "data")
    keys = tuple(text for group in groups for text in (f"{group}=custom", f"{group}._target_=mine.{group}"))
    subject = Job(tmp_path, monkeypatch, *keys, "model.loss=mse").subject
    assert [subject.code_of(group) for group in groups] == [
        f" It is {group}._target_=mine.{group}." for group in groups
    ]
