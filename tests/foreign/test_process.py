"""A command is waited for, and nothing of it is left, whatever it has started."""

import os
import sys
import time
from pathlib import Path

import pytest

from ckptrun.errors import ConfigError
from ckptrun.foreign.process import Command, CommandEnd, last_lines, run_command

DETACHED = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)
print(child.pid, flush=True)
"""


def run(folder: Path, *argv: str, timeout_seconds: float = 60.0, struck=lambda: None) -> CommandEnd:
    command = Command(
        argv=argv,
        folder=folder,
        environment=dict(os.environ),
        mark=("CKPTRUN_PROBE", str(folder / "plan.json")),
        log=folder / "log",
        timeout_seconds=timeout_seconds,
    )
    return run_command(command, struck=struck)


def is_alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize(
    ("code", "exit_code"), [("", 0), ("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)]
)
def test_how_it_ended_is_as_in_a_shell(tmp_path, code, exit_code):
    ended = run(tmp_path, sys.executable, "-c", code)
    assert (ended.exit_code, ended.timed_out, ended.was_ended) == (exit_code, False, False)


def test_what_it_has_detached_is_ended_too(tmp_path):
    assert run(tmp_path, sys.executable, "-c", DETACHED).exit_code == 0
    pid = int((tmp_path / "log").read_text())
    assert not is_alive(pid)


def test_one_that_runs_for_ever_is_killed(tmp_path):
    ended = run(tmp_path, sys.executable, "-c", f"{DETACHED}\ntime.sleep(600)", timeout_seconds=6)
    assert ended.timed_out
    assert ended.exit_code == 137
    assert not is_alive(int((tmp_path / "log").read_text()))


def test_one_that_hangs_by_a_fault_is_killed(tmp_path):
    began = time.monotonic()
    ended = run(tmp_path, sys.executable, "-c", "import time; time.sleep(600)", struck=lambda: "hang")
    assert ended.was_ended
    assert not ended.timed_out
    assert ended.seconds <= time.monotonic() - began


def test_it_has_no_terminal(tmp_path):
    assert run(tmp_path, sys.executable, "-c", "input()").exit_code == 1
    assert "EOFError" in last_lines(tmp_path / "log")


def test_the_end_of_a_long_log_is_told(tmp_path):
    run(tmp_path, sys.executable, "-c", "for i in range(9999): print('line', i)")
    assert last_lines(tmp_path / "log").splitlines()[-1] == "line 9998"
    assert len(last_lines(tmp_path / "log").splitlines()) == 12


@pytest.mark.parametrize("program", ["no-such-program-anywhere", "./neither.sh"])
def test_a_program_that_is_not_there_is_named(tmp_path, program):
    with pytest.raises(ConfigError, match=f"there is no program '{program}'"):
        run(tmp_path, program)


def test_a_file_that_cannot_be_run_is_named(tmp_path):
    (tmp_path / "script.py").write_text("")
    with pytest.raises(ConfigError, match=r"script.py' cannot be started: Permission denied"):
        run(tmp_path, "./script.py")
