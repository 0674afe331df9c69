"""What failed legs say of the resume: nothing. Legs are made by hand, as files; no rank is started."""

import json
from pathlib import Path

import pytest

from ckptrun.checks.whole_runs import check_controls, check_invisible, check_second_resume
from ckptrun.evidence.ledger_comparison import LedgerComparison
from ckptrun.evidence.mismatch import Mismatch
from ckptrun.evidence.starts import Failure, Start
from ckptrun.evidence.verdict import Check, Status
from ckptrun.launch.local import Outcome
from ckptrun.proof.diagnose import Suspect, diagnose
from ckptrun.proof.leg_end import why_incomplete
from ckptrun.proof.material import Material
from ckptrun.proof.subject import TimedOutcome
from tests.support.configs import config_of
from tests.support.hand_made import own_job

STEPS = 6


def line(step: int, loss: float = 1.0, start: int = 0) -> dict[str, object]:
    digits = {name: float(loss).hex() for name in ("loss", "gradient_norm", "learning_rate")}
    return {"step": step, "start": start, **digits, "skipped": False, "batch": f"batch {step}", "rng": {}}


def write_ledger(folder: Path, steps: int, loss: float = 1.0) -> None:
    (folder / "ledger").mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(line(step, loss)) + "\n" for step in range(1, steps + 1))
    (folder / "ledger/rank_00000.jsonl").write_text(text)


def write_failure(folder: Path, text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    event = {"event": "failure", "rank": 0, "text": text, "leaves": [], "component": None}
    (folder / "events.jsonl").write_text(json.dumps(event) + "\n")


def ended(code: int) -> TimedOutcome:
    return TimedOutcome(outcome=Outcome(exit_code=code), seconds=0.1)


def material_in(folder: Path) -> Material:
    config = config_of(f"run.dir={folder}", "fault=sigkill", "parallelism=none", f"train.steps={STEPS}")
    subject = own_job(config)
    write_ledger(subject.run("reference").folder, STEPS)
    starts = [Start(index=0), Start(index=1, step=3, resumed_from=f"{folder}/checkpoints/step_00000003")]
    return Material(
        subject=subject,
        ignore=(),
        has_controls=True,
        starts=starts,
        planned=(),
        fired=(),
        failure=None,
        kept={},
    )


def suspect_of(material: Material, *, step: int | None = 5) -> Suspect:
    mismatch = (
        None if step is None else Mismatch(step=step, rank=0, field="loss", expected="0x1p0", got="0x1p1", start=1)
    )
    return Suspect(mismatch=mismatch, start=material.starts[1])


@pytest.mark.parametrize("code", [1, 0])
def test_a_reference_that_fails_when_it_is_repeated_proves_no_determinism(code, tmp_path) -> None:
    material = material_in(tmp_path)

    def start_run(run, **what):
        if code:
            write_failure(run.folder, "ValueError: the cache is locked")
        else:
            write_ledger(run.folder, 2)
        return ended(code)

    found = diagnose(suspect_of(material), material, start_run=start_run)
    assert (found.is_known, found.is_deterministic, found.blame) == (False, False, None)
    assert "not known" in found.text
    assert ("the cache is locked" if code else "after step 2 of 5") in found.text


def test_an_end_that_cannot_be_compared_proves_no_determinism(tmp_path) -> None:
    material = material_in(tmp_path)
    found = diagnose(suspect_of(material, step=None), material, start_run=lambda run, **what: ended(1))
    assert (found.is_known, found.is_deterministic) == (False, False)


def test_a_start_that_fails_when_it_is_watched_leaves_the_difference_without_a_name(tmp_path) -> None:
    material = material_in(tmp_path)
    asked = []

    def start_run(run, **what):
        asked.append(run.name)
        if "reference" in run.name:
            write_ledger(run.folder, STEPS)
            return ended(0)
        return ended(1)

    # The checkpoint of the resume is there.
    folder = tmp_path / "checkpoints/step_00000003"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    found = diagnose(suspect_of(material), material, start_run=start_run)
    assert asked[0] == "traced_reference"
    assert (found.is_known, found.is_deterministic) == (True, True)
    assert "traced run failed: rank 0: ended with exit code 1 without a word" in found.text


def test_a_leg_is_whole_only_with_every_step_of_every_rank(tmp_path) -> None:
    config = config_of(f"run.dir={tmp_path}", "parallelism=ddp", "launch.nproc=2")
    run = own_job(config).run("run")
    write_ledger(tmp_path, STEPS)
    assert why_incomplete(run, ended(0), last_step=STEPS) == "rank 1 ended with exit code 0 after step 0 of 6"
    (tmp_path / "ledger/rank_00001.jsonl").write_text((tmp_path / "ledger/rank_00000.jsonl").read_text())
    assert why_incomplete(run, ended(0), last_step=STEPS) is None
    killed = TimedOutcome(outcome=Outcome(exit_code=1, killed={1: 9}), seconds=0.1)
    assert why_incomplete(run, killed, last_step=STEPS).startswith("rank 1: was ended by SIGKILL (")


def test_controls_that_fail_half_way_are_not_made(tmp_path) -> None:
    control = {
        "component": "rng",
        "is_found": True,
        "is_exercised": True,
        "blamed": ["rng"],
        "detail": "without rng: loss differed",
    }
    start = Start(index=0, controls=[control], failure=Failure(rank=0, text="ValueError: no"))
    check = check_controls([start], asked=True)
    assert (check.status, check.is_needed) == (Status.not_verified, True)
    assert "ValueError: no" in check.detail
    start.ended, start.failure = "stopped", None
    assert check_controls([start], asked=True).status is Status.equal


def test_no_step_in_common_is_no_proof_that_saving_is_invisible() -> None:
    nothing = LedgerComparison(steps=0, lines=0, repeated=0, ranks=1, first=None)
    assert check_invisible(nothing, saves=2).status is Status.not_verified


@pytest.mark.parametrize("step", [5, None])
def test_a_reference_that_another_interpreter_does_not_repeat_is_told_with_the_seeds(
    step, tmp_path, monkeypatch
) -> None:
    material = material_in(tmp_path)
    material.starts[0].hash_seed, material.starts[1].hash_seed, material.starts[1].fresh = "32", "45", True
    asked = []

    def start_run(run, *, fresh=False, **what):
        asked.append((run.name, fresh))
        write_ledger(run.folder, STEPS, loss=2.0 if fresh else 1.0)
        return ended(0)

    def ends(expected, got, *, step, counts):
        status = Status.different if "interpreter" in str(got) else Status.equal
        return Check(name="final_state", status=status, detail="1 leaf differs")

    monkeypatch.setattr("ckptrun.proof.diagnose.compare_checkpoints", ends)
    found = diagnose(suspect_of(material, step=step), material, start_run=start_run)
    assert asked[-1] == ("reference_in_another_interpreter", True)
    assert (len(asked), found.is_known, found.is_deterministic, found.blame) == (2, True, False, None)
    assert "two interpreters" in found.text
    assert "PYTHONHASHSEED was 32 and 45" in found.text


def test_steps_that_no_resume_is_to_blame_for_are_not_held_against_the_second_one() -> None:
    repeats = Check(name="repeats", status=Status.different, detail="step 5: batch")
    starts = [
        Start(index=0, committed=["a"]),
        Start(index=1, step=4, resumed_from="a", committed=["b"]),
        Start(index=2, step=5, resumed_from="b", checks=[repeats]),
    ]
    random = Check(name="trajectory", status=Status.not_verified, detail="not deterministic: two references differ")
    found = check_second_resume(starts, [random])
    assert (found.status, found.detail) == (Status.not_verified, random.detail)
    other = Check(name="trajectory", status=Status.different, detail="step 5: batch")
    assert check_second_resume(starts, [other]).status is Status.different
