"""Proofs, run as users run them: what fails, what is compared, what is said. The final state is compared without ckptrun."""

import itertools
import json
import os
import signal
import time

import pytest

from ckptrun.config.fault import FaultKind, FaultPoint
from tests.support.jobs import TINY, assert_same_state, events, processes_of, run_here, start, stop, tensors, verdict

pytestmark = [pytest.mark.distributed, pytest.mark.crash]

JOB = (*TINY, "train.steps=8", "checkpoint.interval_steps=3", "proof.controls=none")
ONE = (*JOB, "parallelism=none", "checkpoint=async")
TWO = (*JOB, "parallelism=fsdp", "launch.nproc=2", "checkpoint=async")
LAST = "checkpoints/step_00000008"
CHECKS = {
    "saved_equals_live", "loaded_equals_saved", "trajectory", "final_state", "replicas", "second_resume",
    "saving_is_invisible", "saves_differ", "controls",
}  # fmt: skip


def status_of(folder) -> dict[str, str]:
    return {check["name"]: check["status"] for check in verdict(folder)["checks"]}


def lines(folder, rank=0):
    return [json.loads(line) for line in (folder / f"ledger/rank_{rank:05d}.jsonl").read_text().splitlines()]


def assert_equal_as_without(folder, done, last=LAST) -> None:
    """The verdict is equal, and the end is bit for bit that of the reference, which nothing happened to."""
    assert done == 0, (done.output[-3000:], done.errors[-2000:])
    assert verdict(folder)["verdict"] == "equal"
    assert_same_state(folder / last, folder / "proof/reference" / last)


def test_the_smoke_experiment_makes_all_nine_checks_and_says_what_they_covered(tmp_path) -> None:
    done = run_here(tmp_path, "experiment=smoke")
    assert done == 0, done.output + done.errors
    found = verdict(tmp_path)
    assert set(status_of(tmp_path)) >= CHECKS
    assert set(status_of(tmp_path).values()) == {"equal"}
    covered = {check["name"]: check["covered"] for check in found["checks"]}
    assert covered["loaded_equals_saved"]["ranks"] == 4
    assert covered["loaded_equals_saved"]["leaves"] > 100
    assert covered["trajectory"]["steps"] == 12
    assert covered["saved_equals_live"]["bytes"] > 100_000
    assert covered["controls"]["controls"] == 2
    assert [start["resumed_from"] is None for start in found["starts"]] == [True, False, False]
    assert len(found["fired"]) == 2
    assert {line["epoch"] if "epoch" in line else line["start"] for line in lines(tmp_path)} == {0, 1, 2}
    assert "EQUAL" in done.output
    last = "checkpoints/step_00000012"
    assert_same_state(tmp_path / last, tmp_path / "proof/reference" / last)
    # A run of the same job without any proof ends the same too.
    plain = tmp_path / "plain"
    assert run_here(plain, "experiment=smoke", "fault=none") == 0
    assert tensors(plain / last) == tensors(tmp_path / last)


def test_sigterm_saves_at_the_step_boundary_and_no_step_is_lost_or_done_twice(tmp_path) -> None:
    assert_equal_as_without(tmp_path, run_here(tmp_path, *TWO, "fault=sigterm"))
    for rank in range(2):
        assert [line["step"] for line in lines(tmp_path, rank)] == list(range(1, 9))
    ended = [event["event"] for event in events(tmp_path) if event["event"] in ("preempted", "end")]
    assert ended == ["preempted", "preempted", "end"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hang", "sigstop"])
def test_a_rank_that_stands_still_is_named_with_its_place_before_the_timeout(kind, tmp_path) -> None:
    done = run_here(tmp_path, *TWO, f"fault={kind}", "launch.timeout_seconds=5", "fault.more=[{kind: sigkill}]")
    assert_equal_as_without(tmp_path, done)
    (said,) = [event for event in events(tmp_path) if event["event"] == "failure"]
    (fired,) = [text for text in verdict(tmp_path)["fired"] if kind in text]
    rank = fired.split(" of rank ")[1][0]
    assert f"rank {rank} " in said["text"]
    assert "step " in said["text"]
    assert ("does not answer" in said["text"]) == (kind == "sigstop")


def test_damage_on_the_way_to_the_disk_is_found_and_the_resume_goes_back_further(tmp_path) -> None:
    assert_equal_as_without(
        tmp_path, run_here(tmp_path, *TWO, "fault=bit_flip", "train.steps=10"), "checkpoints/step_00000010"
    )
    assert status_of(tmp_path)["damage_noticed"] == "equal"
    assert [event["folder"][-8:] for event in events(tmp_path) if event["event"] == "skipped"] == ["00000006"]


def test_without_a_fault_fresh_processes_go_on_from_the_middle_twice(tmp_path) -> None:
    assert_equal_as_without(tmp_path, run_here(tmp_path, *TWO, "proof=full"))
    starts = verdict(tmp_path)["starts"]
    assert [start["ended"] for start in starts] == ["stopped", "stopped", "end"]
    assert [start["step"] for start in starts][1:] == [4, 6]


def test_resumed_on_another_mesh_the_state_is_equal_and_every_sample_comes_once(tmp_path) -> None:
    done = run_here(tmp_path, *TWO, "fault=sigkill", "proof.resume_parallelism=ddp", "proof.resume_nproc=3")
    assert done == 0, done.output + done.errors
    found = status_of(tmp_path)
    assert found["loaded_equals_saved"] == found["data_order"] == found["replicas"] == found["second_resume"] == "equal"
    assert [start["ranks"] for start in verdict(tmp_path)["starts"]] == [2, 3, 3]


def test_a_fault_that_does_not_fire_verifies_nothing(tmp_path) -> None:
    # Step 5 is never saved: the second fault waits in vain.
    job = (*ONE, "fault=sigkill", "fault.step=2", "fault.more=[{kind: sigkill, point: writing, step: 5, rank: 0}]")
    done = run_here(tmp_path, *job)
    assert done == 4, done.output
    assert verdict(tmp_path)["verdict"] == "not_verified"
    assert "did not fire" in verdict(tmp_path)["reason"]
    assert "writing of step 5" in verdict(tmp_path)["reason"]


@pytest.mark.slow
def test_leaves_are_compared_step_by_step_where_that_is_asked_for(tmp_path) -> None:
    assert_equal_as_without(tmp_path, run_here(tmp_path, *ONE, "fault=exception", "proof.digest_every_steps=2"))
    told = [line["step"] for line in lines(tmp_path) if "leaves" in line]
    assert set(told) == {2, 4, 6, 8}
    assert any(name.startswith("optimizer.state.") for name in lines(tmp_path)[1]["leaves"])


@pytest.mark.slow
def test_a_proof_is_done_anew_in_its_own_folder_and_refuses_that_of_a_run(tmp_path) -> None:
    assert run_here(tmp_path / "run", *ONE) == 0
    before = tensors(tmp_path / "run" / LAST)
    done = run_here(tmp_path / "run", *ONE, "fault=sigkill")
    assert done == 2
    assert "run.name" in done.errors
    assert tensors(tmp_path / "run" / LAST) == before
    for _ in range(2):
        assert_equal_as_without(tmp_path / "proof", run_here(tmp_path / "proof", *ONE, "fault=sigkill"))


def test_a_job_that_does_not_run_at_all_is_no_failed_proof(tmp_path) -> None:
    job = [text for text in JOB if not text.startswith(("model.", "data."))]
    missing = run_here(tmp_path, *job, "fault=sigkill", "data=text", "data.files=[/nowhere/*.txt]")
    assert missing in (1, 2)
    assert "/nowhere" in missing.errors
    assert not (tmp_path / "checkpoints/step_00000003").exists()


@pytest.mark.slow
def test_ctrl_c_in_the_middle_leaves_no_process_and_the_proof_can_be_done_anew(tmp_path) -> None:
    process = start(tmp_path, *ONE, "fault=sigkill", "train.steps=400", "checkpoint.interval_steps=100")
    until = time.monotonic() + 60
    while not events(tmp_path) and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.5)
    output, errors = stop(process, signal.SIGINT)
    assert process.returncode == 1, output + errors
    assert "interrupted" in errors
    assert "Traceback" not in errors
    assert processes_of(tmp_path) == []
    assert_equal_as_without(tmp_path, run_here(tmp_path, *ONE, "fault=sigkill"))


@pytest.mark.slow
def test_torchrun_restarts_a_run_with_a_fault_and_it_checks_itself_against_a_reference(tmp_path) -> None:
    job = [text for text in (*TWO, "fault=sigkill") if not text.startswith("launch.")]
    assert run_here(tmp_path / "reference", *TWO) == 0
    launcher = ("torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "2", "-m")
    process = start(tmp_path / "run", *job, f"proof.reference={tmp_path / 'reference'}", launcher=launcher)
    output, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors[-3000:]
    assert "Resumed from" in output
    found = status_of(tmp_path / "run")
    assert found["faults"] == found["trajectory"] == found["final_state"] == found["loaded_equals_saved"] == "equal"
    assert len(list((tmp_path / "run/faults").iterdir())) == 1
    assert_same_state(tmp_path / "run" / LAST, tmp_path / "reference" / LAST)


@pytest.mark.slow
def test_sigterm_to_the_command_saves_and_the_next_start_goes_on_there(tmp_path) -> None:
    job = (*TWO, "train.steps=2000", "checkpoint.interval_steps=1000")
    process = start(tmp_path, *job)
    until = time.monotonic() + 60
    while not [event for event in events(tmp_path) if event["event"] == "step"] and time.monotonic() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    assert "SIGTERM" in errors
    assert "Traceback" not in errors
    done = [event["step"] for event in events(tmp_path) if event["event"] == "step"][-1]
    assert (tmp_path / f"checkpoints/step_{done:08d}").is_dir()
    assert processes_of(tmp_path) == []
    again = run_here(tmp_path, *job, f"train.steps={done + 2}")
    assert again == 0, again
    assert [event["step"] for event in events(tmp_path) if event["event"] == "step"] == list(range(1, done + 3))


# Faults in turn: each strikes after the resume from the one before, so that one proof is of all of them.


def in_turn(faults, *, rank="any") -> tuple[str, ...]:
    """The overrides that plan (kind, point) one after the other, three steps apart: each of these steps is saved."""
    planned = []
    for step, (kind, point) in zip(itertools.count(6, 3), faults, strict=False):
        planned.append(f"kind: {kind}, step: {step}, rank: {rank}" + (f", point: {point}" if point else ""))
        if kind.is_silent:
            # So that what it has left is looked at.
            planned.append(f"kind: {FaultKind.sigkill}, step: {step + 1}")
    first = [f"fault{'' if key == 'kind' else f'.{key}'}={value}" for key, value in _pairs(planned[0])]
    more = ", ".join(f"{{{entry}}}" for entry in planned[1:])
    return (*first, f"fault.more=[{more}]", f"train.steps={step + 2}")


def _pairs(entry: str) -> list[list[str]]:
    return [pair.split(": ") for pair in entry.split(", ")]


def assert_equal_after_all(folder, faults, *job, rank="any") -> None:
    """A proof with all of ``faults``, each of which must have struck for it to be equal, ends as if there were none."""
    planned = in_turn(faults, rank=rank)
    done = run_here(folder, *job, *planned)
    assert_equal_as_without(folder, done, f"checkpoints/step_{int(planned[-1].split('=')[1]):08d}")


POINTS_OF_SAVE = [point for point in FaultPoint if point.is_of_save]
POINTS_OF_LOOP = [point for point in FaultPoint if not point.is_of_save]
MESHES = {
    "ddp": ["parallelism=ddp", "launch.nproc=3"],
    "fsdp_tp": ["parallelism=fsdp_tp"],
    "one": ["parallelism=none"],
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "points"),
    [
        ("one", POINTS_OF_LOOP),
        ("one", POINTS_OF_SAVE),
        ("fsdp_tp", [FaultPoint.mid_accumulation, FaultPoint.staging, FaultPoint.before_commit]),
        ("ddp", [FaultPoint.after_backward, FaultPoint.writing, FaultPoint.loading]),
    ],
    ids=["one-loop", "one-save", "fsdp_tp", "ddp"],
)
def test_killed_at_every_point(points, mesh, tmp_path) -> None:
    job = (*JOB, *MESHES[mesh], "checkpoint=async", "train.accumulate=2", "checkpoint.keep_last=1")
    assert_equal_after_all(tmp_path, [(FaultKind.sigkill, point) for point in points], *job)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "points"),
    [
        ((*TWO, "checkpoint=sync"), [point for point in POINTS_OF_SAVE if point is not FaultPoint.staging]),
        # The others strike in the rank, before there is anything for a process to write or after it was done.
        ((*ONE, "checkpoint=async_process"), [FaultPoint.staging, FaultPoint.writing, FaultPoint.after_commit]),
    ],
    ids=["sync", "async_process"],
)
def test_killed_at_every_point_of_a_save(job, points, tmp_path) -> None:
    faults = [(FaultKind.sigkill, point) for point in points]
    assert_equal_after_all(tmp_path, faults, *job, "checkpoint.keep_last=1")


STANDING = (FaultKind.hang, FaultKind.sigstop)
"""Have a test of their own above."""
KINDS = [kind for kind in FaultKind if kind not in (FaultKind.none, FaultKind.sigkill, FaultKind.chaos, *STANDING)]


@pytest.mark.slow
@pytest.mark.parametrize("is_silent", [False, True], ids=["ends the run", "silent"])
def test_every_kind_of_fault(is_silent, tmp_path) -> None:
    kinds = [(kind, None) for kind in KINDS if kind.is_silent == is_silent]
    assert_equal_after_all(tmp_path, kinds, *TWO)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kinds",
    [(FaultKind.sigkill, FaultKind.sigterm, FaultKind.exception, FaultKind.disk_full), STANDING],
    ids=["end", "stand still"],
)
def test_faults_that_strike_all_ranks(kinds, tmp_path) -> None:
    job = (*TWO, "launch.timeout_seconds=2", "launch.stop_seconds=2")
    assert_equal_after_all(tmp_path, [(kind, None) for kind in kinds], *job, rank="all")


def test_a_killed_rank_takes_its_loader_workers_along(tmp_path) -> None:
    assert_equal_as_without(tmp_path, run_here(tmp_path, *ONE, "fault=sigkill", "data.num_workers=2"))
    assert processes_of(tmp_path) == []


IN_SAVES = (FaultPoint.staging, FaultPoint.loading, FaultPoint.writing, FaultPoint.before_commit)


@pytest.mark.slow
@pytest.mark.parametrize(
    "faults",
    [
        [(FaultKind.sigint, point) for point in IN_SAVES],
        [(FaultKind.sigterm, point) for point in IN_SAVES],
        [*itertools.product((FaultKind.exception, FaultKind.hang), (FaultPoint.writing, FaultPoint.loading))],
    ],
    ids=["sigint", "sigterm", "exception and hang"],
)
def test_faults_in_a_load_and_in_a_save(faults, tmp_path) -> None:
    assert_equal_after_all(tmp_path, faults, *TWO, "launch.timeout_seconds=5")


@pytest.mark.slow
def test_chaos(tmp_path) -> None:
    done = run_here(
        tmp_path, *TWO, "train.steps=60", "checkpoint.interval_steps=7", "fault=chaos", "fault.mean_steps=6"
    )
    assert_equal_as_without(tmp_path, done, "checkpoints/step_00000060")
    assert len(verdict(tmp_path)["fired"]) >= 5
