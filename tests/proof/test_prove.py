"""Which legs a proof starts, in which order and with what; and what it makes of those that do not go as planned."""

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ckptrun import __version__
from ckptrun.config.fault import FaultKind, FaultPoint
from ckptrun.errors import ConfigError
from ckptrun.evidence.verdict import Status
from ckptrun.exit_codes import ExitCode
from ckptrun.fault import FaultRecord, PlannedFault
from ckptrun.launch.local import Outcome
from ckptrun.proof.prove import run_proof
from ckptrun.run.lock import RunLock
from tests.support.configs import config_of
from tests.support.hand_made import (
    STEPS,
    HandMade,
    begin,
    does_controls,
    does_it_right,
    event,
    put_checkpoint,
    say_failure,
    train,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")


def kill(step: int, index: int = 0) -> PlannedFault:
    point = FaultPoint.after_optimizer
    rest = {"ranks": (0,), "share": 0.5, "seconds": 0.0, "seed": 0}
    return PlannedFault(index=index, kind=FaultKind.sigkill, point=point, step=step, **rest)


TWICE = (kill(3), kill(5, index=1))


class Proof:
    """A proof of a hand-made job, and what came of it."""

    def __init__(
        self, folder: Path, *keys: str, plan: tuple[PlannedFault, ...] = TWICE, private: Path | None = None, **job: Any
    ) -> None:
        self.folder = folder / "run"
        self.job = HandMade(self.folder, **job)
        self._config = config_of("fault=sigkill", f"train.steps={STEPS}", *keys)
        self._config.run.dir = str(self.folder)
        self._config.proof.private = [] if private is None else [str(private)]
        self._plan = plan

    def run(self, monkeypatch: pytest.MonkeyPatch) -> int:
        monkeypatch.setattr("ckptrun.proof.prove.OwnJob", lambda *_, **given: self.job.given(**given))
        return int(run_proof(self._config, plan=self._plan, command=["ckptrun"]))

    @property
    def verdict(self) -> dict[str, Any]:
        return json.loads((self.folder / "verdict.json").read_text())


def fails_with(text: str, **facts: Any) -> Any:
    def act(job: HandMade, run: Any, leg: Any) -> Outcome:
        event(run, "launch", start=leg.start)
        say_failure(run, text, **facts)
        return Outcome(exit_code=1)

    return act


def test_a_job_that_does_it_right_is_equal_and_each_leg_is_asked_for_once(tmp_path, monkeypatch, capsys) -> None:
    proof = Proof(tmp_path)
    assert proof.run(monkeypatch) == ExitCode.done, proof.verdict["reason"]
    job = proof.job
    assert job.names == ["reference", "run", "run 1", "run 2", "controls"]
    assert job.is_prepared_before == 0
    assert [asked.run.folder for asked in job.asked] == [
        proof.folder / "proof/reference", *[proof.folder] * 3, proof.folder / "proof/controls"
    ]  # fmt: skip
    assert [asked.leg.in_proof for asked in job.asked] == [True] * 5
    assert [asked.leg.saves_at_end_only for asked in job.asked] == [True, False, False, False, False]
    assert [asked.leg.saves_after_resume for asked in job.asked] == [False, False, True, True, False]
    # The first resume comes from the other interpreter, and no other.
    assert [asked.leg.fresh for asked in job.asked] == [False, False, True, False, False]
    assert [asked.leg.faults for asked in job.asked] == [(), TWICE, TWICE, TWICE, ()]
    assert [asked.run.is_later for asked in job.asked] == [False, False, True, True, False]
    assert [asked.run.saves for asked in job.asked] == [True, True, True, True, False]
    assert [asked.resume_from for asked in job.asked] == [None, None, None, None, 2]
    # What is begun from a checkpoint finds the private files that the run found there.
    assert [asked.leg.begins_as for asked in job.asked] == [None, None, None, None, 1]
    assert all(asked.leg.files is not None for asked in job.asked)
    said = proof.verdict
    assert (said["verdict"], said["blame"]) == ("equal", None)
    assert said["fired"] == [f"sigkill of rank 0 at after_optimizer of step {step}" for step in (3, 5)]
    assert [(start["step"], start["ended"]) for start in said["starts"]] == [(0, None), (2, None), (4, "end")]
    assert "EQUAL" in capsys.readouterr().out
    assert (said["exit_code"], [leg["name"] for leg in said["legs"]]) == (0, ["reference", *["run"] * 3, "controls"])
    assert said["seconds"] > 0
    report = (proof.folder / "report.html").read_text()
    assert "Equal: killed and resumed" in report
    assert "went on from" in report
    mark = json.loads((proof.folder / "proof.json").read_text())
    assert (mark["command"], mark["ckptrun"]) == (["ckptrun"], __version__)


def test_controls_are_held_against_the_reference_and_told_what_is_asked(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, "proof.controls=[rng]", "proof.ignore=[model.embed]")
    assert proof.run(monkeypatch) == ExitCode.done, proof.verdict["reason"]
    controls = proof.job.of("controls").leg.controls
    assert controls.reference == proof.folder / "proof/reference"
    assert (tuple(controls.components), controls.ignore, controls.are_named) == (("rng",), ("model.embed",), True)


def test_controls_that_are_switched_off_are_not_started(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, "proof.controls=none")
    assert proof.run(monkeypatch) == ExitCode.done
    assert "controls" not in proof.job.names


def test_without_a_fault_starts_end_by_themselves(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, "fault=none", "proof=full", plan=(), stops=(3, 5))
    assert proof.run(monkeypatch) == ExitCode.done, proof.verdict["reason"]
    assert proof.job.names == ["reference", "run", "run 1", "run 2", "controls"]
    assert [proof.job.of(name).leg.stop_at for name in ("run", "run 1", "run 2")] == [3, 5, None]


def test_a_run_whose_end_nobody_has_resumed_from_is_started_once_more(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, plan=(kill(3),))
    assert proof.run(monkeypatch) == ExitCode.done, proof.verdict["reason"]
    assert proof.job.names == ["reference", "run", "run 1", "run 2", "controls"]
    assert [start.step for start in proof.job.starts()] == [0, 2, 6]


def test_a_run_that_never_finds_a_checkpoint_is_not_started_for_ever(tmp_path, monkeypatch) -> None:
    def begins_anew(job: HandMade, run: Any, leg: Any) -> Outcome:
        event(run, "launch", start=leg.start)
        event(run, "start", step=0, resumed_from=None, world_size=1)
        train(run, leg, step=0, last=STEPS)
        event(run, "end")
        return Outcome(exit_code=0)

    proof = Proof(tmp_path, plan=(kill(3),), acts={f"run {index}": begins_anew for index in range(1, 9)})
    assert proof.run(monkeypatch) == ExitCode.different
    assert [name for name in proof.job.names if name.startswith("run")] == ["run", *(f"run {i}" for i in (1, 2, 3, 4))]
    assert proof.verdict["reason"].startswith("nothing_lost: start 2 began anew")


def test_nothing_is_fresh_until_there_is_something_to_go_on_from(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, plan=(kill(1), kill(3, index=1), kill(5, index=2)))
    assert proof.run(monkeypatch) == ExitCode.done, proof.verdict["reason"]
    assert [asked.leg.fresh for asked in proof.job.asked if asked.run.name == "run"] == [False, False, True, False]


def test_a_reference_that_fails_ends_the_proof_with_its_own_words(tmp_path, monkeypatch, capsys) -> None:
    proof = Proof(tmp_path, acts={"reference": fails_with("ValueError: no such file")})
    assert proof.run(monkeypatch) == ExitCode.failed
    assert proof.job.names == ["reference"]
    assert proof.verdict["verdict"] == "not_verified"
    assert proof.verdict["reason"] == (
        "the reference, in which nothing was to fail, failed: ValueError: no such file"
    )  # fmt: skip
    assert "the reference" in capsys.readouterr().err


def test_a_reference_that_ends_early_with_0_is_no_reference(tmp_path, monkeypatch) -> None:
    def stops_early(job: HandMade, run: Any, leg: Any) -> Outcome:
        train(run, leg, step=begin(run, leg), last=4)
        event(run, "end")
        return Outcome(exit_code=0)

    proof = Proof(tmp_path, acts={"reference": stops_early})
    assert proof.run(monkeypatch) == ExitCode.failed
    assert proof.job.names == ["reference"]
    assert "rank 0 ended with exit code 0 after step 4 of 6" in proof.verdict["reason"]


def test_a_fault_that_nobody_notices_is_no_excuse_for_an_end(tmp_path, monkeypatch) -> None:
    flip = replace(kill(2), kind=FaultKind.bit_flip, point=FaultPoint.writing)

    def ends_of_something_else(job: HandMade, run: Any, leg: Any) -> Outcome:
        train(run, leg, step=begin(run, leg), last=2)
        FaultRecord(run.folder).note(flip, rank=0, step=2)
        say_failure(run, "MemoryError")
        return Outcome(exit_code=1)

    proof = Proof(tmp_path, plan=(flip, kill(3, index=1)), acts={"run": ends_of_something_else})
    assert proof.run(monkeypatch) == ExitCode.failed
    assert proof.job.names == ["reference", "run"]


def test_controls_of_a_run_that_was_only_resumed_at_its_end_have_nothing_to_begin_from(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, plan=(kill(6),))
    assert proof.run(monkeypatch) == ExitCode.not_verified
    assert "controls" not in proof.job.names
    (controls,) = [check for check in proof.verdict["checks"] if check["name"] == "controls"]
    assert controls["detail"] == "the controls did not run to their end"


def test_a_save_that_the_engine_refuses_in_the_reference_is_a_difference(tmp_path, monkeypatch) -> None:
    refused = fails_with("SaveRefusedError: 'w' changed", check="saved_equals_live", component="model")
    proof = Proof(tmp_path, acts={"reference": refused})
    assert proof.run(monkeypatch) == ExitCode.different
    assert (proof.verdict["verdict"], proof.verdict["blame"]) == ("different", "model")


def test_a_leaf_to_ignore_that_the_reference_has_not_is_refused_before_the_run(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, "proof.ignore=[model.nowhere]")
    with pytest.raises(ConfigError, match="nowhere"):
        proof.run(monkeypatch)
    assert proof.job.names == ["reference"]


def test_an_end_before_anything_was_to_fail_is_the_error_of_the_job(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, acts={"run": fails_with("OSError: the disk is full")})
    assert proof.run(monkeypatch) == ExitCode.failed
    assert proof.job.names == ["reference", "run"]
    assert proof.verdict["reason"] == "the run, before anything was to fail, failed: OSError: the disk is full"


def test_ranks_that_end_with_0_before_they_are_done_have_failed(tmp_path, monkeypatch) -> None:
    def ends(job: HandMade, run: Any, leg: Any) -> Outcome:
        begin(run, leg)
        return Outcome(exit_code=0)

    proof = Proof(tmp_path, acts={"run": ends})
    assert proof.run(monkeypatch) == ExitCode.failed
    assert "its ranks ended with exit code 0 before they were done" in proof.verdict["reason"]


def test_a_resume_that_cannot_go_on_is_a_difference_and_nothing_more_is_started(tmp_path, monkeypatch) -> None:
    cannot = fails_with("KeyError: 'exp_avg'", leaves=["optimizer.state.w.exp_avg"], component="optimizer")
    proof = Proof(tmp_path, acts={"run 1": cannot})
    assert proof.run(monkeypatch) == ExitCode.different
    assert proof.job.names == ["reference", "run", "run 1"]
    said = proof.verdict
    assert said["blame"] == "optimizer"
    assert said["reason"].startswith("resume: start 2 of the run could not go on: rank 0: KeyError: 'exp_avg'")
    assert "PYTHONHASHSEED" not in said["reason"]


def test_a_start_that_says_nothing_does_not_inherit_the_words_of_the_one_before(tmp_path, monkeypatch) -> None:
    def is_killed(job: HandMade, run: Any, leg: Any) -> Outcome:
        outcome = does_it_right(job, run, leg)
        say_failure(run, "RuntimeError: planned")
        return outcome

    def dies(job: HandMade, run: Any, leg: Any) -> Outcome:
        return Outcome(exit_code=1, killed={0: int(signal.SIGSEGV)})

    proof = Proof(tmp_path, acts={"run": is_killed, "run 1": dies})
    assert proof.run(monkeypatch) == ExitCode.different
    assert "SIGSEGV" in proof.verdict["reason"]
    assert "planned" not in proof.verdict["reason"]


def test_an_interrupt_ends_the_proof_at_once_without_a_verdict(tmp_path, monkeypatch, capsys) -> None:
    def is_told_to_end(job: HandMade, run: Any, leg: Any) -> Outcome:
        return Outcome(exit_code=1, interrupted_by=signal.SIGTERM)

    proof = Proof(tmp_path, acts={"run": is_told_to_end})
    assert proof.run(monkeypatch) == ExitCode.failed
    assert proof.job.names == ["reference", "run"]
    assert not (proof.folder / "verdict.json").exists()
    assert "interrupted by SIGTERM" in capsys.readouterr().err
    assert "Not finished: the proof did not come to a verdict" in (proof.folder / "report.html").read_text()
    # Nobody holds the folder any more.
    RunLock(proof.folder, "proof.lock").close()


def test_private_files_are_put_back_also_when_ctrl_c_comes(tmp_path, monkeypatch, capsys) -> None:
    private = tmp_path / "cache"
    private.write_text("before")

    def is_interrupted(job: HandMade, run: Any, leg: Any) -> Outcome:
        private.write_text("of the run")
        raise KeyboardInterrupt

    proof = Proof(tmp_path, private=private, acts={"run": is_interrupted})
    assert proof.run(monkeypatch) == ExitCode.failed
    assert private.read_text() == "before"
    assert "was interrupted. " in capsys.readouterr().err


def test_each_start_finds_the_private_files_that_it_shall(tmp_path, monkeypatch) -> None:
    private = tmp_path / "cache"
    private.write_text("before")
    found = []

    def writes(job: HandMade, run: Any, leg: Any) -> Outcome:
        found.append((run.name, leg.start, private.read_text()))
        private.write_text(f"{run.name} {leg.start}")
        return (does_controls if run.name == "controls" else does_it_right)(job, run, leg)

    acts = dict.fromkeys(("reference", "run", "run 1", "run 2", "controls"), writes)
    proof = Proof(tmp_path, private=private, acts=acts)
    assert proof.run(monkeypatch) == ExitCode.done, proof.verdict["reason"]
    assert found == [
        ("reference", 0, "before"),
        ("run", 0, "before"),
        ("run", 1, "run 0"),
        ("run", 2, "run 1"),
        # As the start that it is held against.
        ("controls", 0, "run 0"),
    ]


def test_on_another_mesh_an_uninterrupted_run_shows_what_is_right_there(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, reshapes=True)
    code = proof.run(monkeypatch)
    job = proof.job
    assert job.names == ["reference", "run", "resumed_reference", "run 1", "run 2", "controls"]
    assert [asked.run.ranks for asked in job.asked] == [1, 1, 2, 2, 2, 2]
    assert [asked.leg.samples for asked in job.asked] == [True] * 5 + [False]
    again = job.of("resumed_reference")
    assert again.resume_from == str(proof.folder / "checkpoints")
    assert (again.leg.saves_at_end_only, again.leg.begins_as, again.leg.fresh) == (True, 1, False)
    assert job.of("controls").leg.controls.reference == proof.folder / "proof/resumed_reference"
    assert code == ExitCode.done, proof.verdict["reason"]
    assert "data_order" in [check["name"] for check in proof.verdict["checks"]]


def test_a_mesh_on_which_the_job_does_not_run_proves_nothing(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, reshapes=True, acts={"resumed_reference": fails_with("ValueError: 3 heads on 2 ranks")})
    assert proof.run(monkeypatch) == ExitCode.failed
    assert proof.verdict["verdict"] == Status.not_verified
    assert "on the other mesh, in which nothing was to fail, failed: rank 0: ValueError" in proof.verdict["reason"]


def test_a_resume_that_fails_of_the_other_mesh_is_told_first(tmp_path, monkeypatch) -> None:
    fails = fails_with("ValueError: 3 heads on 2 ranks")
    proof = Proof(tmp_path, reshapes=True, acts={"resumed_reference": fails, "run 1": fails})
    assert proof.run(monkeypatch) == ExitCode.different
    assert proof.verdict["reason"].startswith("resume: start 2 of the run could not go on")


def test_what_the_run_may_remove_is_kept_for_the_controls(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path, keep_last=1)
    assert proof.run(monkeypatch) == ExitCode.done, proof.verdict["reason"]
    checkpoint = Path(proof.job.of("controls").leg.controls.checkpoint)
    assert checkpoint == proof.folder / "proof/kept/step_00000002"


def test_a_proof_takes_no_folder_that_another_one_is_running_in(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path)
    proof.folder.mkdir()
    held = RunLock(proof.folder, "proof.lock")
    with pytest.raises(ConfigError, match="Another process is running"):
        proof.run(monkeypatch)
    held.close()
    assert proof.job.names == []


def test_a_folder_with_somebody_elses_files_is_refused_and_not_touched(tmp_path, monkeypatch) -> None:
    proof = Proof(tmp_path)
    put_checkpoint(str(proof.folder / "checkpoints"), 2)
    with pytest.raises(ConfigError, match="was not made by a proof"):
        proof.run(monkeypatch)
    assert proof.job.names == []
    assert [path.name for path in proof.folder.iterdir()] == ["checkpoints"]
