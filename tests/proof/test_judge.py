"""Which of several checks is the verdict's, and what a proof says of what it could not judge. Legs are made by hand."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from ckptrun.config.fault import FaultKind, FaultPoint
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.evidence.starts import Failure, Start, read_starts
from ckptrun.evidence.verdict import Check, Status, Verdict
from ckptrun.fault import FaultRecord, Fired, PlannedFault
from ckptrun.files import read_lines
from ckptrun.launch.local import Outcome
from ckptrun.proof.diagnose import Diagnosis
from ckptrun.proof.failed import judge_failed
from ckptrun.proof.judge import judge
from ckptrun.proof.material import Material
from ckptrun.run.leg import Leg
from tests.support.bits import flip
from tests.support.hand_made import STEPS, HandMade, begin, event, train
from tests.support.saves import FILE, live_state, save

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")

_CONTROL = {"component": "rng", "is_exercised": True, "is_found": True, "detail": "without rng: loss differed"}


def fault(step: int, index: int = 0, kind: FaultKind = FaultKind.sigkill) -> PlannedFault:
    point = FaultPoint.writing if kind is FaultKind.bit_flip else FaultPoint.after_optimizer
    return PlannedFault(
        index=index, kind=kind, point=point, step=step, ranks=(0,), share=0.5, seconds=0.0, seed=0
    )  # fmt: skip


class Shared:
    """What is known of files outside of the run folder."""

    def __init__(self, status: Status = Status.equal, *sentences: str) -> None:
        self.found = Check(name="outside_files", status=status, detail="by hand")
        self.sentences = list(sentences)

    def check(self) -> tuple[Check, list[str]]:
        return self.found, self.sentences


class Case:
    """A run that was killed at steps 3 and 5 and went on, and its reference; what came of it can be changed."""

    def __init__(self, folder: Path, **acts: Any) -> None:
        self.job = HandMade(folder / "run", acts=acts)
        self.plan = (fault(3), fault(5, index=1))
        self.outside = Shared()
        self.failure: Start | None = None
        self.ignore: Sequence[str] = ()
        self.has_controls = True
        self.controls = [Start(index=0, controls=[_CONTROL], ended="stopped")]
        self.made = 0
        self.diagnosed = 0
        self.run = self.job.run("run")
        if not self.run.folder.exists():
            self._make()
        self.starts = read_starts(self.run.folder)
        self.fired = FaultRecord(self.run.folder).fired()

    def _make(self) -> None:
        self.job.start(self.job.run("reference"), Leg(name="reference", saves_at_end_only=True))
        for index in range(3):
            leg = Leg(start=index, faults=self.plan, saves_after_resume=index > 0, fresh=index == 1)
            self.job.start(self.run, leg)

    def judge(self, diagnosis: Diagnosis | None = None, *, monkeypatch: pytest.MonkeyPatch | None = None) -> Verdict:
        if monkeypatch is not None:

            def diagnose(*_: Any, **__: Any) -> Diagnosis:
                self.diagnosed += 1
                assert diagnosis is not None, "nothing is to be diagnosed"
                return diagnosis

            monkeypatch.setattr("ckptrun.proof.judge.diagnose", diagnose)

        def controls() -> list[Start]:
            self.made += 1
            return self.controls

        material = Material(
            subject=self.job,
            ignore=self.ignore,
            has_controls=self.has_controls,
            starts=self.starts,
            planned=self.plan,
            fired=self.fired,
            failure=self.failure,
            kept={},
        )
        return judge(material, outside=self.outside, start_run=_starts_nothing, controls=controls)


def _starts_nothing(*_: Any, **__: Any) -> Any:
    raise AssertionError("a leg was started")


def named(verdict: Verdict, name: str) -> Check:
    (found,) = [check for check in verdict.checks if check.name == name]
    return found


def statuses(verdict: Verdict) -> dict[str, Status]:
    return {check.name: check.status for check in verdict.checks}


def with_loss(step: int, *, only_start: int) -> Callable[..., Outcome]:
    """A start in which the loss of one step is another."""

    def act(job: HandMade, run: Any, leg: Leg) -> Outcome:
        start = begin(run, leg)
        last = {0: 3, 1: 5}.get(only_start, STEPS)
        train(run, leg, step=start, last=last, loss={step: 9.0})
        if only_start < 2:
            FaultRecord(run.folder).note(leg.faults[only_start], rank=0, step=last)
            return Outcome(exit_code=1)
        event(run, "end")
        return Outcome(exit_code=0)

    return act


def differs(name: str, *, step: int | None = None, component: str | None = None) -> Check:
    first = Difference(step=step, rank=0, component=component, leaf=None, expected=1, got=2)
    return Check(name=name, status=Status.different, detail="by hand", first_difference=first)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a job that does it right has left; no test changes it."""
    return Case(tmp_path_factory.mktemp("made")).run.folder.parent


@pytest.fixture
def case(made: Path) -> Case:
    """The same, of which a test may change what was read, and no file."""
    return Case(made)


@pytest.fixture
def own_case(tmp_path: Path) -> Case:
    """One whose files a test may change."""
    return Case(tmp_path)


def test_where_nothing_differs_every_check_is_made(case: Case, monkeypatch) -> None:
    verdict = case.judge(monkeypatch=monkeypatch)
    assert verdict.status is Status.equal, verdict.reason
    assert list(statuses(verdict)) == [
        "faults", "saved_equals_live", "loaded_equals_saved", "nothing_lost", "saves_differ",
        "outside_files", "trajectory", "final_state", "saving_is_invisible", "replicas", "second_resume", "controls",
    ]  # fmt: skip
    assert set(statuses(verdict).values()) == {Status.equal}
    assert (case.made, case.diagnosed, verdict.path) == (1, 0, str(case.run.folder))
    assert (verdict.advice, verdict.blame) == ("", None)
    assert named(verdict, "saving_is_invisible").covered == {"steps": STEPS, "saves": 4}


def test_numbers_that_are_none_are_told(own_case: Case, monkeypatch) -> None:
    file = ledger_file(own_case.job.run("reference").folder, 0)
    lines = [{**line, "loss": "nan"} if line["step"] > 4 else line for line in read_lines(file)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = Diagnosis(is_deterministic=True, text="")
    assert statuses(own_case.judge(found, monkeypatch=monkeypatch))["finite"] is Status.not_verified


def test_a_fault_that_has_not_struck_proves_nothing(case: Case) -> None:
    case.fired = case.fired[:1]
    verdict = case.judge()
    assert (verdict.status, verdict.reason[:8]) == (Status.not_verified, "faults: ")


def test_where_something_differs_no_controls_are_made_and_that_decides_nothing(case: Case) -> None:
    case.starts[1].checks = [differs("loaded_equals_saved", step=2, component="optimizer")]
    verdict = case.judge()
    assert (verdict.status, verdict.blame, case.made) == (Status.different, "optimizer", 0)
    controls = named(verdict, "controls")
    assert (controls.status, controls.is_needed) == (Status.not_verified, False)
    assert verdict.advice.endswith(" It is the code of optimizer.")


def test_controls_that_nobody_has_asked_for_are_not_made(case: Case) -> None:
    case.has_controls = False
    verdict = case.judge()
    assert (verdict.status, case.made) == (Status.equal, 0)
    assert "switched off" in named(verdict, "controls").detail


def test_controls_that_nobody_notices_leave_the_proof_without_a_verdict(case: Case) -> None:
    case.controls[0].controls = [{**_CONTROL, "is_found": False}]
    verdict = case.judge()
    assert (verdict.status, verdict.reason[:18]) == (Status.not_verified, "controls: vacuous:")


def test_an_idle_control_is_told_and_does_not_decide(case: Case) -> None:
    case.controls[0].controls += [{**_CONTROL, "component": "ema", "is_exercised": False, "detail": "nothing there"}]
    verdict = case.judge()
    assert verdict.status is Status.equal
    assert "control of ema: nothing there" in verdict.not_exercised


def test_a_load_that_differs_outranks_the_steps_that_follow_from_it(tmp_path, monkeypatch) -> None:
    case = Case(tmp_path, **{"run 1": with_loss(4, only_start=1)})
    case.starts[1].checks = [differs("loaded_equals_saved", step=2, component="optimizer")]
    verdict = case.judge(monkeypatch=monkeypatch)
    assert verdict.reason.startswith("loaded_equals_saved: ")
    assert statuses(verdict)["trajectory"] is Status.different
    assert (verdict.blame, case.diagnosed) == ("optimizer", 0)


def test_a_step_that_differs_outranks_a_later_load(tmp_path, monkeypatch) -> None:
    case = Case(tmp_path, **{"run": with_loss(3, only_start=0)})
    case.starts[2].checks = [differs("loaded_equals_saved", step=4, component="optimizer")]
    found = Diagnosis(is_deterministic=True, text="forward draws", blame="model", is_of_saving=True)
    verdict = case.judge(found, monkeypatch=monkeypatch)
    assert case.diagnosed == 1
    assert verdict.blame == "model"
    assert verdict.reason.split(":")[0] in ("trajectory", "saving_is_invisible")
    assert "forward draws" in verdict.reason


def test_steps_that_differ_get_the_cause_that_is_found(tmp_path, monkeypatch) -> None:
    case = Case(tmp_path, **{"run 1": with_loss(4, only_start=1)})
    first = Difference(step=4, rank=0, component="model", leaf=None, expected=1, got=2)
    found = Diagnosis(is_deterministic=True, text="layers.0 output", blame="model", first_difference=first)
    verdict = case.judge(found, monkeypatch=monkeypatch)
    assert (verdict.status, verdict.blame, verdict.first_difference) == (Status.different, "model", first)
    assert verdict.reason.startswith("trajectory: layers.0 output. step 4, rank 0: ")
    # It was not saving that changed the steps.
    assert statuses(verdict)["saving_is_invisible"] is Status.equal


def test_what_saving_changes_is_told_as_that(tmp_path, monkeypatch) -> None:
    case = Case(tmp_path, **{"run 1": with_loss(4, only_start=1)})
    found = Diagnosis(is_deterministic=True, text="each save draws", blame="rng", is_of_saving=True)
    verdict = case.judge(found, monkeypatch=monkeypatch)
    saving = named(verdict, "saving_is_invisible")
    assert (saving.status, saving.detail, saving.blame) == (Status.different, "each save draws", "rng")


@pytest.mark.parametrize("is_known", [True, False])
def test_a_reference_that_does_not_repeat_itself_blames_nobody(is_known, tmp_path, monkeypatch) -> None:
    case = Case(tmp_path, **{"run 1": with_loss(4, only_start=1)})
    found = Diagnosis(is_deterministic=False, is_known=is_known, text="two differ", blame="model")
    verdict = case.judge(found, monkeypatch=monkeypatch)
    assert (verdict.status, verdict.blame) == (Status.not_verified, None)
    assert verdict.reason == f"trajectory: {'not deterministic: ' if is_known else ''}two differ"


def test_legs_that_shared_files_are_not_held_against_each_other(tmp_path, monkeypatch) -> None:
    case = Case(tmp_path, **{"run 1": with_loss(4, only_start=1)})
    case.outside = Shared(Status.not_verified, "files that nobody saw")
    verdict = case.judge(monkeypatch=monkeypatch)
    assert (verdict.status, verdict.blame, case.diagnosed) == (Status.not_verified, None, 0)
    assert verdict.reason.startswith("outside_files: ")
    trajectory = named(verdict, "trajectory")
    assert trajectory.status is Status.not_verified
    assert trajectory.detail.startswith("not judged, as legs shared files: step 4, rank 0: ")
    # What is equal all the same stays so.
    assert statuses(verdict)["final_state"] is Status.equal
    assert verdict.not_covered == ["files that nobody saw"]


def test_a_load_is_judged_whatever_files_were_shared(case: Case) -> None:
    case.outside = Shared(Status.not_verified)
    case.starts[1].checks = [differs("loaded_equals_saved", step=2)]
    assert case.judge().reason.startswith("loaded_equals_saved: ")


def fails(case: Case, index: int, **facts: Any) -> Start:
    """Let the run end in that start, in a way that was not planned."""
    case.starts = case.starts[: index + 1]
    case.failure = case.starts[-1]
    case.failure.ended = None
    case.failure.failure = Failure(rank=0, text="ValueError: mine", **facts)
    return case.failure


def test_a_resume_that_fails_is_a_difference_and_the_end_is_not_compared(case: Case, monkeypatch) -> None:
    fails(case, 2, component="optimizer", leaves=["optimizer.lr"])
    verdict = case.judge(monkeypatch=monkeypatch)
    assert verdict.reason.startswith("resume: start 3 of the run could not go on: rank 0: ValueError: mine")
    assert (verdict.status, verdict.blame, case.diagnosed) == (Status.different, "optimizer", 0)
    assert verdict.first_difference is not None
    assert (verdict.first_difference.leaf, verdict.first_difference.step) == ("optimizer.lr", 4)
    assert {"trajectory", "final_state"}.isdisjoint(statuses(verdict))
    assert statuses(verdict)["second_resume"] is Status.different
    assert "another interpreter" not in verdict.reason


def test_a_start_without_a_word_is_told_by_its_end(case: Case) -> None:
    fails(case, 2).failure = None
    assert "its ranks ended with exit code 0 before they were done" in case.judge().reason


def test_what_fails_in_the_other_interpreter_is_told_with_its_seed(case: Case) -> None:
    fails(case, 1)
    assert "start 2 ran in another interpreter (PYTHONHASHSEED=45)" in case.judge().reason


def test_what_a_start_of_the_other_interpreter_finds_is_told_with_its_seed_and_nothing_else_is(own_case: Case) -> None:
    own_case.starts[1].checks = [differs("loaded_equals_saved", step=2)]
    flip(Path(own_case.run.checkpoint(4)) / FILE)
    verdict = own_case.judge()
    told = [check.name for check in verdict.checks if "PYTHONHASHSEED" in check.detail]
    assert told == ["loaded_equals_saved"]
    assert statuses(verdict)["saved_equals_live"] is Status.different
    own_case.starts[2].checks, own_case.starts[1].checks = own_case.starts[1].checks, []
    assert "PYTHONHASHSEED" not in named(own_case.judge(), "loaded_equals_saved").detail


def test_a_save_that_was_refused_stands_for_the_files_and_for_the_resume(case: Case) -> None:
    fails(case, 1, check="saved_equals_live", component="model", leaves=["model.w"])
    verdict = case.judge()
    assert verdict.status is Status.different
    assert verdict.reason.startswith("saved_equals_live: rank 0: ValueError: mine")
    assert verdict.blame == "model"
    assert "resume" not in statuses(verdict)


def test_files_that_do_not_hold_what_was_live_are_found(own_case: Case) -> None:
    flip(Path(own_case.run.checkpoint(4)) / FILE)
    assert own_case.judge().reason.startswith("saved_equals_live: ")


def test_an_end_that_alone_differs_is_looked_into(own_case: Case, monkeypatch) -> None:
    folder = Path(own_case.run.checkpoint(STEPS))
    shutil.rmtree(folder)
    save(folder.parent, STEPS, {**live_state(STEPS), "memory": {"last": torch.zeros(4)}})
    found = Diagnosis(is_deterministic=True, text="", blame=None)
    verdict = own_case.judge(found, monkeypatch=monkeypatch)
    assert (verdict.status, verdict.blame, own_case.diagnosed) == (Status.different, "memory", 1)
    assert verdict.reason.startswith("final_state: 1 of ")


def damaged_at(case: Case, step: int) -> str:
    """Plan that the save of ``step`` was damaged, and let it be so."""
    flips = fault(step, index=0, kind=FaultKind.bit_flip)
    case.plan = (flips, *case.plan[1:])
    case.fired = [Fired(index=0, rank=0, kind=flips.kind, point=flips.point, step=step), *case.fired[1:]]
    folder = case.run.checkpoint(step)
    flip(Path(folder) / FILE)
    return folder


def test_damage_that_no_resume_has_noticed_is_a_difference(own_case: Case) -> None:
    damaged_at(own_case, 2)
    verdict = own_case.judge()
    assert verdict.status is Status.different
    assert statuses(verdict)["damage_noticed"] is Status.different
    assert "no resume has found the checkpoint damaged" in named(verdict, "damage_noticed").detail
    # The files are as damaged as they were meant to be.
    assert statuses(verdict)["saved_equals_live"] is Status.equal


def test_damage_that_was_noticed_and_gone_back_from_is_as_it_should_be(own_case: Case) -> None:
    folder = damaged_at(own_case, 4)
    own_case.starts[2].damaged = {folder: "block 1"}
    verdict = own_case.judge()
    assert statuses(verdict)["damage_noticed"] is Status.equal
    assert named(verdict, "damage_noticed").covered == {"checkpoints": 1}


def test_a_checkpoint_that_was_saved_again_must_be_whole_again(own_case: Case) -> None:
    folder = damaged_at(own_case, 4)
    own_case.starts[2].damaged = {folder: "block 1"}
    own_case.starts[2].committed += [folder]
    assert statuses(own_case.judge())["saved_equals_live"] is Status.different


def test_a_start_that_has_seen_a_save_leave_a_trace_is_believed(case: Case) -> None:
    case.starts[0].checks = [differs("saving_is_invisible", step=2, component="model")]
    verdict = case.judge()
    assert verdict.reason == "saving_is_invisible: by hand"
    assert [check.name for check in verdict.checks].count("saving_is_invisible") == 1
    assert verdict.blame == "model"


def test_leaves_that_are_not_compared_are_told(case: Case) -> None:
    case.ignore = ["model.embed"]
    verdict = case.judge()
    assert verdict.status is Status.equal
    assert "model.embed" in " ".join(verdict.not_covered)


def test_a_run_with_one_save_has_none_to_compare_and_that_decides_nothing(own_case: Case) -> None:
    for step in (2, 3, 4, 5):
        shutil.rmtree(own_case.run.checkpoint(step), ignore_errors=True)
    differ = named(own_case.judge(), "saves_differ")
    assert (differ.status, differ.is_needed) == (Status.not_verified, False)


def test_a_ledger_that_lacks_the_end_is_no_proof(own_case: Case) -> None:
    file = ledger_file(own_case.job.run("reference").folder, 0)
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    verdict = own_case.judge()
    assert verdict.status is not Status.equal


def test_a_job_that_fails_by_a_refused_save_is_different_and_any_other_is_not_judged() -> None:
    refused = Failure(rank=1, text="SaveRefusedError", check="saved_equals_live", component="model")
    verdict = judge_failed([Start(index=0, failure=refused)], "the reference", why="exit code 1")
    assert (verdict.status, verdict.blame) == (Status.different, "model")
    assert verdict.reason == "saved_equals_live: the reference ended: rank 1: SaveRefusedError"
    verdict = judge_failed([], "the reference", why="exit code 1")
    assert (verdict.status, verdict.reason) == (Status.not_verified, "the reference failed: exit code 1")
