"""``crash=save`` on jobs of which is known what a crash within a save does to them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ckptrun.__main__ import main
from tests.support.job_python import JOB_PYTHON
from tests.support.strace import needs_strace

pytestmark = needs_strace

JOB = Path(__file__).parent / "job.py"
# Where the job saves over its last checkpoint.
LINE = next(n for n, line in enumerate(JOB.read_text().splitlines(), 1) if "torch.save(state, folder /" in line)


def prove(folder: Path, how: str, *overrides: str, monkeypatch) -> tuple[int, dict]:
    """Judge the crash states of the job; return exit code and verdict."""
    command = ["--", JOB_PYTHON, str(JOB), "--output_dir", "{run}", "--how", how]
    arguments = ["ckptrun", "prove", "crash=save", "crash.resume_steps=1", f"run.dir={folder}", *overrides, *command]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, json.loads((folder / "verdict.json").read_text())


def came_to(verdict: dict) -> dict[str, int]:
    """Outcome -> of how many states."""
    found: dict[str, int] = {}
    for group in verdict["crash_states"]:
        found[group["came_to"]] = found.get(group["came_to"], 0) + group["states"]
    return found


def test_a_save_over_the_last_one_loses_both(tmp_path, monkeypatch, capsys) -> None:
    code, verdict = prove(tmp_path, "in_place", "crash.power_cut=false", monkeypatch=monkeypatch)
    assert (code, verdict["verdict"], verdict["reason"].partition(":")[0]) == (3, "different", "crash_states")
    assert came_to(verdict).keys() == {"equal", "failed"}
    (failed,) = (group for group in verdict["crash_states"] if group["came_to"] == "failed")
    assert "EOFError" in failed["text"]
    kinds = {one["what"]: one["where"] for one in failed["left_by"]}
    assert kinds["killed: openat of checkpoint.pt"] == f"{JOB.relative_to(Path.cwd())}:{LINE} save"
    assert verdict["not_covered"] == ["power cuts: crash.power_cut=false"]
    printed = capsys.readouterr().out
    assert "failed: 1 state: EOFError" in printed
    # What it says shows it again.
    folder = tmp_path / "repro" / "01"
    report = (tmp_path / "report.html").read_text()
    assert f"<pre>{folder}/reproduce.sh</pre>" in report
    assert "a resume fails: EOFError" in report
    assert f":{LINE} save" in report
    again = subprocess.run([folder / "reproduce.sh"], capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert "EOFError" in again.stderr
    report = (folder / "report.md").read_text()
    assert "EOFError" in report
    assert f"job.py:{LINE} save" in report
    assert "checkpoint.pt  0 bytes" in report


@pytest.mark.slow
def test_a_save_that_is_synced_and_renamed_stands_all_of_them(tmp_path, monkeypatch) -> None:
    code, verdict = prove(tmp_path, "synced", monkeypatch=monkeypatch)
    assert (code, verdict["verdict"], verdict["reason"]) == (0, "equal", "")
    assert came_to(verdict).keys() == {"equal"}
    # The first save that removes an older one.
    assert verdict["save"] == 6
    states = verdict["states"]
    assert states["killed"] >= 5
    assert states["power cut"] >= 3
    assert [check["name"] for check in verdict["checks"]] == ["observed", "crash_states"]
    check = verdict["checks"][1]
    assert check["covered"]["states"] == came_to(verdict)["equal"]
    # Each one that a resume has looked at otherwise, and the whole state both ways.
    assert 2 <= check["covered"]["resumes"] <= check["covered"]["states"] + 1
    assert not (tmp_path / "repro").exists()


@pytest.mark.slow
def test_a_save_that_the_job_ends_with_is_not_called_equal(tmp_path, monkeypatch) -> None:
    code, verdict = prove(tmp_path, "synced", "crash.step=8", "crash.power_cut=false", monkeypatch=monkeypatch)
    assert (code, verdict["verdict"]) == (4, "not_verified")
    assert verdict["reason"].startswith(
        "crash_states: no state of the save of step 8 fails, but the job takes no step after it: "
    )
    assert verdict["not_covered"] == [
        "what a resume computes: the job takes 0 steps after the save",
        "power cuts: crash.power_cut=false",
    ]


@pytest.mark.slow
def test_two_files_that_do_not_belong_together_are_loaded_silently(tmp_path, monkeypatch) -> None:
    code, verdict = prove(tmp_path, "two_files", monkeypatch=monkeypatch)
    assert (code, verdict["verdict"], verdict["blame"]) == (3, "different", "optimizer")
    different = [group for group in verdict["crash_states"] if group["came_to"] == "different"]
    assert "'optimizer." in different[0]["text"]
    assert any("rename of model.draft" in one["what"] for one in different[0]["left_by"])
    assert "failed" not in came_to(verdict)


@pytest.mark.slow
def test_a_pointer_that_comes_after_the_file_costs_the_last_save(tmp_path, monkeypatch) -> None:
    code, verdict = prove(tmp_path, "pointer", "crash.power_cut=false", monkeypatch=monkeypatch)
    assert code == 3
    assert came_to(verdict).keys() == {"equal", "lost_work"}
    (lost,) = (group for group in verdict["crash_states"] if group["came_to"] == "lost_work")
    assert lost["text"] == "it goes on from step 2, although the checkpoint of step 4 is complete"
    assert {one["what"] for one in lost["left_by"]} >= {"killed: rename of step-#.draft"}


def test_a_machine_without_strace_is_told_what_to_install(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    monkeypatch.setattr(sys, "argv", ["ckptrun", "prove", "crash=save", f"run.dir={tmp_path}", "--", "python", "{run}"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "crash=save needs strace" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_step_without_a_save_is_refused(tmp_path, monkeypatch, capsys) -> None:
    command = ["--", JOB_PYTHON, str(JOB), "--output_dir", "{run}", "--how", "in_place"]
    monkeypatch.setattr(
        sys, "argv", ["ckptrun", "prove", "crash=save", "crash.step=3", f"run.dir={tmp_path}", *command]
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = "crash.step=3: nothing was saved after that step. Saved are the steps 2, 4, 6, 8."
    assert said in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("waits", [False, True])
def test_what_one_rank_leaves_behind_while_the_others_go_on_is_judged(waits, tmp_path, monkeypatch) -> None:
    torchrun = [JOB_PYTHON, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*torchrun, str(JOB.with_name("ranks_job.py")), "--output_dir", "{run}", *["--waits"] * waits]
    overrides = ["crash=save", "crash.power_cut=false", "crash.resume_steps=1", f"run.dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["ckptrun", "prove", *overrides, "--", *command])
    with pytest.raises(SystemExit) as ended:
        main()
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert verdict["save"] == 4
    assert verdict["states"]["one rank killed"] >= 3
    if waits:
        assert (ended.value.code, came_to(verdict).keys()) == (0, {"equal"})
        return
    assert (ended.value.code, verdict["blame"]) == (3, "rng")
    assert came_to(verdict).keys() == {"equal", "different"}
    different = [group for group in verdict["crash_states"] if group["came_to"] == "different"]
    left_by = {one["what"].partition(":")[0] for group in different for one in group["left_by"]}
    assert left_by == {"one rank killed"}
