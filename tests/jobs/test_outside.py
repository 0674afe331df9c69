"""Proofs of jobs that keep something outside of the run folder. Each is a real one; which files were seen is theirs to say."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tests.support.jobs import ROOT, run_here, verdict

pytestmark = [pytest.mark.distributed, pytest.mark.crash]

OUTSIDE = Path(__file__).parent / "user code" / "outside.py"
JOB = (
    "model=mlp", "model.features=[8,8,8]", "model.loss=mse", "parallelism=none", "fault=sigkill", "train.steps=8",
    "train.micro_batch=4", "checkpoint.interval_steps=3", "proof.controls=none", "data=custom",
)  # fmt: skip


def prove(folder, name: str, *overrides: str):
    data = (f"data._target_='{OUTSIDE}:{name}'", f"data.args.path={folder}/kept")
    done = run_here(folder / "run", *JOB, *data, *overrides)
    return done, verdict(folder / "run")


def test_a_cache_that_one_leg_filled_and_another_read_proves_nothing_however_often_one_asks(tmp_path) -> None:
    for _ in range(2):
        done, found = prove(tmp_path, "Cached", "data.num_workers=1")
        assert (done, found["verdict"]) == (4, "not_verified"), done.errors
        assert found["reason"].startswith(f"outside_files: {tmp_path}/kept/")
        assert f"proof.private=[{tmp_path}/kept]" in found["reason"]
        assert found["blame"] is None


@pytest.mark.slow
def test_with_a_copy_of_its_own_for_each_leg_what_the_cache_hid_is_found(tmp_path) -> None:
    done, found = prove(tmp_path, "Cached", f"proof.private=[{tmp_path}/kept]")
    assert (done, found["verdict"], found["blame"]) == (3, "different", "data")
    assert not (tmp_path / "kept").exists()


@pytest.mark.slow
def test_a_cache_that_may_be_shared_is_not_covered_and_no_matter(tmp_path) -> None:
    done, found = prove(tmp_path, "Cached", f"proof.shared=[{tmp_path}/kept/*]")
    assert (done, found["verdict"]) == (0, "equal"), found["reason"]
    (sentence,) = found["not_covered"]
    assert sentence.startswith(f"files that legs shared (proof.shared): {tmp_path}/kept/")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Counted", "Native", "Mapped", "Sqlite", "ByProcess", "Folder", "Named"])
def test_whatever_writes_and_reads_it_a_shared_file_is_found(name, tmp_path, request) -> None:
    memory = Path("/dev/shm", tmp_path.name)
    memory.unlink(missing_ok=True)
    request.addfinalizer(partial(memory.unlink, missing_ok=True))
    done, found = prove(tmp_path, name)
    assert (done, found["verdict"], found["blame"]) == (4, "not_verified", None), found["reason"]
    place = memory if name == "Named" else f"{tmp_path}/kept"
    assert found["reason"].startswith(f"outside_files: {place}")


@pytest.mark.slow
def test_what_is_opened_past_python_is_said_not_to_be_covered(tmp_path) -> None:
    done, found = prove(tmp_path, "PastPython")
    assert (done, found["verdict"]) == (0, "equal"), found["reason"]
    assert found["not_covered"] == ["files and memory that true opened past Python: legs may share them"]


@pytest.mark.slow
def test_what_each_leg_makes_for_itself_is_no_matter(tmp_path) -> None:
    done, found = prove(tmp_path, "Scratch")
    assert (done, found["verdict"]) == (0, "equal"), found["reason"]


def test_what_an_interpreter_draws_at_its_start_is_another_thing_after_the_first_resume(tmp_path) -> None:
    done, found = prove(tmp_path, "ByHash")
    assert (done, found["verdict"], found["blame"]) == (4, "not_verified", None), found["reason"]
    assert "two references differ that ran in two interpreters" in found["reason"]
    assert "PYTHONHASHSEED was 32 and 45" in found["reason"]
    assert [start["hash_seed"] for start in found["starts"]] == ["32", "45", "32"]


@pytest.mark.slow
def test_a_hash_seed_that_the_user_sets_for_every_start_is_theirs(tmp_path) -> None:
    job = [*JOB, f"data._target_='{OUTSIDE}:ByHash'", f"run.dir={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-m", "ckptrun", *job],
        env={**os.environ, "PYTHONHASHSEED": "7"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = verdict(tmp_path)
    assert "another hash seed: PYTHONHASHSEED=7 was set for every start" in found["not_exercised"]
