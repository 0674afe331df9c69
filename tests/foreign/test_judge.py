"""What a verdict on a command says, from ledgers and facts that are made by hand."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest

from ckptrun.evidence.difference import Difference
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.evidence.starts import Failure, Start
from ckptrun.evidence.verdict import Check, Status, Verdict, verdict_of
from ckptrun.files import append_line
from ckptrun.foreign.alignment import Aligned
from ckptrun.foreign.checkpoints import SavedStep
from ckptrun.foreign.judge import StartFacts, ends_elsewhere, is_unexplained, judge_command
from ckptrun.foreign.translation import NO_BATCHES
from ckptrun.proof.material import Material
from ckptrun.proof.subject import Run

STEPS = 6
LOADED = Check(name="loaded_equals_saved", status=Status.equal, detail="by hand", covered={"leaves": 3, "ranks": 1})


class Job:
    """As much of a subject as is looked at."""

    steps = STEPS
    reshapes = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, name: str, **_: Any) -> Run:
        folder = self.folder / name
        return Run(name=name, folder=folder, checkpoints=str(folder / "output"), ranks=1)


def line(step: int, start: int, name: str, **changed: Any) -> dict[str, Any]:
    facts = {"loss": float(step).hex(), "gradient_norm": None, "learning_rate": "0x1.0p-3", "skipped": False}
    facts |= {"batch": f"batch {step}", "rng": {}, "streams": {"torch": f"t{step}", "python": f"{name} {start} {step}"}}
    leaves = {"gradients.w": f"g{step}", "model.w": f"w{step}"} | changed.pop("leaves", {})
    return {"step": step, "start": start, **facts, "iterators": [], "drawn": ["torch"], "leaves": leaves, **changed}


class Case:
    """A run that was killed at step 3, after a save at 2, and went on; lines of its second start can be changed."""

    def __init__(self, folder: Path) -> None:
        self.job = Job(folder)
        self.again: Path | None = None
        self.resumed_at = 2
        self.changed: dict[int, dict[str, Any]] = {}
        self.loaded = LOADED
        self.errors: list[str] = []
        self.failure: Start | None = None
        self.taken = 4
        self.newest_of_all: SavedStep | None = None
        self.steps_again: int | None = None
        self.lines("reference", range(1, STEPS + 1))

    def lines(self, name: str, steps: range, start: int = 0, changed: dict[int, dict[str, Any]] | None = None) -> Path:
        folder = self.job.run(name).folder
        file = ledger_file(folder, 0)
        file.parent.mkdir(parents=True, exist_ok=True)
        for step in steps:
            append_line(file, line(step, start, name, **(changed or {}).get(step, {})))
        return folder

    def judge(self, first: dict[int, dict[str, Any]] | None = None) -> Verdict:
        self.lines("run", range(1, 4), changed=first)
        self.lines("run", range(self.resumed_at + 1, STEPS + 1), 1, self.changed)
        saved = SavedStep(step=2, place=Path("checkpoint-2"), is_complete=True, sizes={})
        resumed_from = saved.name if self.resumed_at == 2 else None
        starts = [
            Start(index=0, committed=[saved.name]),
            Start(index=1, step=self.resumed_at, resumed_from=resumed_from, checks=[self.loaded], ended="end"),
        ]
        facts = [
            StartFacts(aligned=Aligned(step=0, how="beginning"), newest_before=None, steps=3, errors=self.errors),
            StartFacts(
                aligned=Aligned(step=self.resumed_at, how="state"),
                newest_before=saved,
                newest_of_all=self.newest_of_all,
                steps=self.taken,
                errors=(),
            ),
        ]
        material = Material(
            subject=self.job,  # type: ignore[arg-type]
            ignore=(),
            has_controls=False,
            starts=starts,
            planned=(),
            fired=(),
            failure=self.failure,
            kept={},
        )
        return judge_command(material, facts, again=self.again, notes=(), steps_again=self.steps_again)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case(tmp_path)


def statuses(verdict: Verdict) -> dict[str, str]:
    return {check.name: str(check.status) for check in verdict.checks}


def test_what_repeats_the_reference_is_equal_but_for_what_was_not_resumed_twice(case):
    verdict = case.judge()
    equal = ("observed", "lost_work", "loaded_equals_saved", "trajectory")
    assert statuses(verdict) == dict.fromkeys(equal, "equal") | {"second_resume": "not_verified"}


@pytest.mark.parametrize(
    ("changed", "blame"),
    [
        ({"batch": "another"}, "data"),
        ({"learning_rate": "0x1.0p-4"}, "schedule"),
        ({"skipped": True}, "scaler"),
        ({"leaves": {"gradients.w": "other"}}, None),
        # The loss that backward starts from is scaled.
        ({"loss": "0x1.8p+1", "leaves": {"scaler.scale": "0x1p+3"}}, "scaler"),
        # One that was never there says more than the gradients that it changes.
        ({"leaves": {"gradients.w": "other", "gradients.x": "new", "model.x": "new"}}, "model"),
        # Not a matter of streams.
        ({"leaves": {"written.ema.w in last.pt": "other"}, "streams": {"torch": "elsewhere"}}, "ema"),
        # A loader has begun and drawn, and the loss is the same.
        ({"leaves": {"buffers.n": "other"}, "streams": {"torch": "elsewhere"}}, "buffers"),
        # A teacher that the loss goes by.
        ({"loss": "0x1.8p+1", "leaves": {"model.copy of Net.w": "other"}}, "model"),
        ({"loss": "0x1.8p+1"}, None),
        ({"loss": "0x1.8p+1", "streams": {"torch": "elsewhere"}}, "rng"),
        ({"batch": "another", "streams": {"torch": "elsewhere"}}, "rng"),
        # It stood where it should when the loader began: what is drawn from it since is another matter.
        ({"batch": "another", "streams": {"torch": "elsewhere"}, "iterators": [{"torch": "t2"}]}, "data"),
        # A dropout draws from where it stands after the loader has drawn once more.
        ({"loss": "0x1.8p+1", "streams": {"torch": "elsewhere"}, "iterators": [{"torch": "t2"}]}, "rng"),
        # Never seeded: another one in every start.
        ({"loss": "0x1.8p+1", "streams": {"torch": "t3", "python": "any"}}, None),
    ],
)
def test_the_first_thing_that_differs_is_blamed_on_whose_it_is(case, changed, blame):
    case.changed = {3: changed}
    verdict = case.judge()
    assert (str(verdict.status), verdict.blame) == ("different", blame)
    assert verdict.reason.startswith("trajectory: step 3, rank 0: ")
    assert verdict.advice


def test_a_copy_of_the_model_is_told_apart_from_what_is_trained(case):
    case.changed = {3: {"leaves": {"model.copy of Net.w": "other"}}}
    verdict = case.judge()
    assert (verdict.blame, verdict.advice.partition(" (")[0]) == ("model", "A copy of the model")


def test_a_save_within_an_accumulation_is_told_by_its_backward_passes(case):
    shutil.rmtree(case.job.folder / "reference")
    second = {step: {"leaves": {"loss.1": "0x1.8p+0"}} for step in range(1, STEPS + 1)}
    case.lines("reference", range(1, STEPS + 1), changed=copy.deepcopy(second))
    case.changed = {step: second[step] for step in range(4, STEPS + 1)} | {3: {"loss": "0x1.8p+1"}}
    reason = case.judge(first={step: {"leaves": {"loss.1": "0x1.8p+0"}} for step in range(1, 4)}).reason
    assert "it comes of 1 backward pass, of 2 in the reference: a checkpoint that is saved within an accu" in reason


def test_which_optimizer_a_number_in_a_name_stands_for_is_said(case):
    case.changed = {3: {"leaves": {"optimizer.#1.v.exp_avg": "other"}}}
    assert case.judge().advice.endswith("(#1 is optimizer 2 of the job, by first steps.)")


def test_a_part_of_a_checkpoint_that_was_not_put_back_is_advised_on(case):
    case.changed = {3: {"leaves": {"written.ema.w in last.pt": "other"}}}
    assert case.judge().advice.startswith("The job keeps it in its checkpoints beside what it trains")


def test_a_stream_that_came_back_is_not_blamed_for_a_later_batch(case):
    """A loader that began once more, in the middle of an epoch, has drawn a seed that no batch comes of."""
    case.changed = {step: {"streams": {"torch": "one draw more"}} for step in range(3, 7)}
    case.changed[3]["iterators"] = [{"torch": "t2"}]
    case.changed[5] |= {"batch": "another", "iterators": [{"torch": "one draw more"}]}
    assert case.judge().blame == "data"


def test_a_stream_that_the_loader_does_not_draw_from_is_not_blamed_for_a_batch(case):
    """Samplers of their own seed: DistributedSampler."""
    own: dict[int, dict[str, Any]] = {step: {"drawn": []} for step in range(1, 7)}
    ledger_file(case.job.run("reference").folder, 0).unlink()
    case.lines("reference", range(1, STEPS + 1), changed=own)
    case.changed = {step: {"drawn": [], "streams": {"torch": "elsewhere"}} for step in range(3, 7)}
    case.changed[5] |= {"batch": "another"}
    assert case.judge(first=own).blame == "data"


def test_a_stream_that_nobody_draws_from_is_not_blamed(case):
    still = {step: {"streams": {"torch": "t0"}} for step in range(1, 7)}
    ledger_file(case.job.run("reference").folder, 0).unlink()
    case.lines("reference", range(1, STEPS + 1), changed=still)
    case.changed = {4: {"loss": "0x1.8p+1", "streams": {"torch": "elsewhere"}}}
    assert case.judge(first=still).blame is None


@pytest.mark.parametrize(("other", "is_so"), [("second_resume", True), ("loaded_equals_saved", False)])
def test_that_it_shows_after_the_second_resume_explains_nothing(other, is_so):
    first = Difference(step=5, expected=1.0, got=2.0)
    trajectory = Check(name="trajectory", status=Status.different, detail="step 5", first_difference=first)
    verdict = verdict_of([trajectory, Check(name=other, status=Status.different, detail="by hand")])
    assert is_unexplained(verdict) is is_so


def test_a_later_start_that_fails_hides_no_cause(case):
    case.changed = {3: {"leaves": {"gradients.w": "other"}}}
    case.failure = Start(index=2, step=4)
    verdict = case.judge()
    assert verdict.blame is None
    assert "the step goes by something else, which did not come back" in verdict.reason


def test_a_start_from_the_end_that_fails_is_told_so(case):
    case.failure = Start(index=2, step=STEPS, failure=Failure(rank=0, text="KeyError: 'w'"))
    said = "resume: start 3, which began at the end of the job (step 6), could not go on: KeyError"
    assert case.judge().reason.startswith(said)


def test_a_start_that_ends_too_early_is_told_with_both_steps(case):
    case.failure, case.taken = Start(index=1, step=2), 3
    verdict = case.judge()
    said = "resume: start 2 ended with exit code 0 after step 5, where the reference goes on to step 6"
    assert (verdict.reason, verdict.blame) == (said, "progress")
    assert verdict.advice.startswith("The resumed job ends elsewhere")


def test_a_job_that_goes_by_the_clock_is_not_judged_by_its_number_of_steps(case):
    case.failure, case.taken = Start(index=1, step=2), 3
    assert ends_elsewhere(case.judge())
    case.steps_again = STEPS
    assert str(case.judge().status) == "different"
    case.steps_again = STEPS + 1
    verdict = case.judge()
    assert str(verdict.status) == "not_verified"
    assert "two runs that nothing happened to take 6 and 7 steps" in verdict.reason
    assert verdict.checks[0].name == "resume"
    assert verdict.advice.startswith("The job does not repeat itself")


def test_what_a_start_did_wrong_is_why_it_ends_too_early(case):
    case.failure, case.taken = Start(index=1, step=2), 3
    case.changed = {3: {"learning_rate": "0x1.0p-4"}}
    assert case.judge().blame == "schedule"


def test_a_stream_that_is_elsewhere_and_changes_nothing_is_no_difference(case):
    case.changed = {step: {"streams": {"torch": "elsewhere"}} for step in range(3, 7)}
    assert statuses(case.judge())["trajectory"] == "equal"


def test_work_that_was_lost_is_told_with_both_steps(case):
    case.resumed_at = 0
    verdict = case.judge()
    assert verdict.reason.startswith("lost_work: start 2 went on from the beginning, although the checkpoint of step 2")
    assert (verdict.first_difference.expected, verdict.first_difference.got) == (2, 0)


def test_data_that_come_from_no_loader_are_not_said_to_be_the_same(case):
    shutil.rmtree(case.job.folder / "reference")
    case.lines("reference", range(1, STEPS + 1), changed={step: {"batch": NO_BATCHES} for step in range(1, STEPS + 1)})
    case.changed = {step: {"batch": NO_BATCHES} for step in range(4, STEPS + 1)}
    case.changed[3] = {"batch": NO_BATCHES, "loss": "0x1.8p+1"}
    reason = case.judge(first={step: {"batch": NO_BATCHES} for step in range(1, 4)}).reason
    assert "parameters, moments and random streams were the same" in reason
    assert "or by its data, which come from no DataLoader" in reason


def test_a_newer_checkpoint_of_another_name_is_told_and_decides_nothing(case):
    case.newest_of_all = SavedStep(step=3, place=Path("best.pt"), is_complete=True, sizes={})
    check = next(check for check in case.judge().checks if check.name == "lost_work")
    assert check.status == "equal"
    assert check.detail.endswith("start 2 went on from step 2, and best.pt, which it did not read, was of step 3")


@pytest.mark.parametrize(
    ("batch", "told"),
    [("batch 1", "the reference has it at step 1"), ("another", "the reference has it at no step")],
)
def test_where_the_reference_has_a_batch_is_told(case, batch, told):
    case.changed = {3: {"batch": batch}}
    assert told in case.judge().reason


def test_a_first_start_that_differs_is_not_deterministic(case):
    verdict = case.judge(first={2: {"loss": "0x1.8p+1"}})
    assert str(verdict.status) == "not_verified"
    assert "not deterministic: two runs that nothing happened to differ at step 2" in verdict.reason


@pytest.mark.parametrize(("differs", "status"), [(True, "not_verified"), (False, "different")])
def test_a_second_reference_decides_on_later_steps(case, differs, status):
    case.changed = {5: {"loss": "0x1.8p+1"}}
    case.again = case.lines("again", range(1, STEPS + 1), changed={4: {"loss": "0x1.1p+1"}} if differs else None)
    assert str(case.judge().status) == status


def test_what_the_probe_missed_is_not_verified(case):
    case.errors = ["a batch: ValueError: odd"]
    verdict = case.judge()
    assert (str(verdict.status), verdict.reason) == (
        "not_verified",
        "observed: the probe failed 1 time in the job's processes, first at a batch: ValueError: odd",
    )
