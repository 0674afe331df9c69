"""A run is held against another one, step by step: it repeats it, or the first step, rank and thing that differ are named."""

import json
import shutil

import pytest

from tests.support.jobs import TINY, run_here, start, stop, verdict, wait_for_event

pytestmark = pytest.mark.distributed

JOB = (*TINY, "parallelism=ddp", "launch.nproc=2", "model.dropout=0.1", "train.steps=8", "checkpoint.interval_steps=2")


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    assert run_here(folder, *JOB) == 0
    return folder


def lines(folder, rank=0):
    return [json.loads(line) for line in (folder / "ledger" / f"rank_{rank:05d}.jsonl").read_text().splitlines()]


def check(folder, name):
    (found,) = [check for check in verdict(folder)["checks"] if check["name"] == name]
    return found


def test_every_rank_writes_down_every_step_with_its_bits(reference) -> None:
    of_ranks = [lines(reference, rank) for rank in range(2)]
    for line in of_ranks[0]:
        assert set(line) == {"step", "start", "by", "loss", "gradient_norm", "learning_rate", "skipped", "batch", "rng"}
        assert set(line["rng"]) == {"python", "numpy", "torch_cpu"}
        assert float.fromhex(line["loss"]) > 0
    assert [line["step"] for line in of_ranks[0]] == list(range(1, 9))
    assert len({line["batch"] for ledger in of_ranks for line in ledger}) == 16
    assert len({line["rng"]["torch_cpu"] for ledger in of_ranks for line in ledger}) == 16


@pytest.mark.slow
def test_a_killed_and_resumed_run_repeats_its_reference(reference, tmp_path) -> None:
    process = start(tmp_path, *JOB)
    wait_for_event(tmp_path, "step", 5)
    stop(process)
    ended = run_here(tmp_path, *JOB, f"proof.reference={reference}")
    assert ended == 0, ended
    assert check(tmp_path, "trajectory")["status"] == "equal"
    assert check(tmp_path, "trajectory")["detail"].startswith("8 steps on 2 ranks")
    assert check(tmp_path, "final_state")["status"] == "equal"
    assert check(tmp_path, "repeats")["status"] == "equal"
    assert "trajectory" in ended.output
    with (tmp_path / "ledger/rank_00001.jsonl").open("ab") as file:
        file.write(b'{"step": 9, "lo')
    again = run_here(tmp_path, *JOB, f"proof.reference={reference}")
    assert again == 0, again
    assert len({line["step"] for line in lines(tmp_path, 1)}) == 8


CHANGES = {
    "another seed": (["train.seed=1"], 1, "batch", "data"),
    "another learning rate": (["optimizer.lr=0.002"], 1, "learning_rate", "schedule"),
    "more dropout": (["model.dropout=0.2"], 1, "loss", None),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_not_the_same_run_is_different_from_the_first_step_on(reference, tmp_path, change) -> None:
    overrides, step, field, component = CHANGES[change]
    ended = run_here(tmp_path, *JOB, *overrides, f"proof.reference={reference}")
    assert ended == 3
    found = verdict(tmp_path)
    assert found["verdict"] == "different"
    first = found["first_difference"]
    assert (first["step"], first["rank"], first["leaf"], first["component"]) == (step, 0, field, component)
    assert first["expected"] != first["got"]
    assert (field == "batch") == (first["ulp"] is None)
    assert check(tmp_path, "final_state")["status"] == "different"
    assert "DIFFERENT" in ended.output


def test_a_resume_without_random_streams_is_caught_where_it_begins(reference, tmp_path) -> None:
    shutil.copytree(reference / "checkpoints/step_00000004", tmp_path / "checkpoints/step_00000004")
    shutil.copytree(reference / "ledger", tmp_path / "ledger")
    ended = run_here(tmp_path, *JOB, "checkpoint.load.exclude=[rng]", f"proof.reference={reference}")
    assert ended == 3
    first = verdict(tmp_path)["first_difference"]
    assert (first["step"], first["component"]) == (5, "rng")
    assert verdict(tmp_path)["blame"] == "rng"
    assert check(tmp_path, "trajectory")["status"] == "different"
    # What was left out at the load was asked for: its own earlier steps are no measure of what comes after it.
    assert "repeats" not in {made["name"] for made in verdict(tmp_path)["checks"]}


def test_a_reference_that_is_too_short_verifies_nothing(reference, tmp_path) -> None:
    ended = run_here(tmp_path, *JOB, "train.steps=10", f"proof.reference={reference}")
    assert ended in (3, 4)
    assert check(tmp_path, "final_state")["status"] == "not_verified"


def test_a_reference_on_another_number_of_ranks_verifies_nothing(reference, tmp_path) -> None:
    ended = run_here(tmp_path, *JOB, "launch.nproc=1", f"proof.reference={reference}")
    assert check(tmp_path, "trajectory")["status"] == "not_verified"
    assert "more than the 1 rank" in check(tmp_path, "trajectory")["detail"]
    assert ended in (3, 4)


@pytest.mark.parametrize("reference", ["/nowhere", "{own}"])
def test_a_reference_that_is_none_is_refused(reference, tmp_path) -> None:
    ended = run_here(tmp_path, *JOB, f"proof.reference={reference.format(own=tmp_path)}")
    assert ended == 2
    assert "proof.reference" in ended.errors
