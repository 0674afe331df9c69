"""The process that ranks are forked from: nobody waits for it in vain while it loads."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptrun.errors import RankFailedError
from ckptrun.launch.interpreter import Interpreter
from tests.support.jobs import ROOT, answers

# Python runs it before anything else; other interpreters go on.
_AT_START = "import os, sys, time\nif 'fork_server' in str(sys.orig_argv):\n    {}\n"


def environment(folder: Path, at_start: str) -> dict[str, str]:
    """What makes a fork server do ``at_start`` in place of loading torch."""
    (folder / "sitecustomize.py").write_text(_AT_START.format(at_start))
    return {**os.environ, "PYTHONPATH": f"{folder}:{ROOT}", "OMP_NUM_THREADS": "1"}


def test_waiting_is_over_when_the_process_is_told_to_end(tmp_path: Path) -> None:
    interpreter = Interpreter(environment(tmp_path, "time.sleep(600)"))
    interpreter.start()
    pid = interpreter.pid
    assert pid is not None
    asked = iter([False, True])
    interpreter.wait(lambda: next(asked))
    assert interpreter.pid is None
    assert list(asked) == []
    with pytest.raises((ChildProcessError, ProcessLookupError)):
        # Whoever reaps it, here or there, it has ended.
        os.waitpid(pid, 0)
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("at_start", "words"),
    [("os._exit(7)", "with exit code 7"), ("os.kill(os.getpid(), 9)", "by SIGKILL")],
)
def test_one_that_ends_while_it_loads_is_told(at_start: str, words: str, tmp_path: Path) -> None:
    interpreter = Interpreter(environment(tmp_path, at_start))
    interpreter.start()
    with pytest.raises(RankFailedError, match=words):
        interpreter.wait(lambda: False)
    assert interpreter.pid is None


def started(folder: Path, at_start: str, *mode: str) -> subprocess.Popen[str]:
    """A command whose fork server does ``at_start``."""
    return subprocess.Popen(
        [sys.executable, "-m", "ckptrun", "model=mlp", "data=random", f"run.dir={folder / 'run'}", *mode],
        env=environment(folder, at_start),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigterm_in_the_first_second_is_one_line(tmp_path: Path) -> None:
    process = started(tmp_path, "time.sleep(600)")
    while not answers(process.pid, signal.SIGTERM):
        assert process.poll() is None, process.communicate()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert errors.startswith("ckptrun: ended by SIGTERM.")
    assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("number", "mode", "words"),
    [
        (signal.SIGINT, (), ["ckptrun: interrupted.\n"]),
        (signal.SIGTERM, (), ["ckptrun: ended by SIGTERM."]),
        (signal.SIGINT, ("fault=sigkill",), ["interrupted."]),
        (signal.SIGINT, ("train.steps=1,2", "-m"), ["ckptrun: interrupted. What is missing"]),
    ],
)
def test_a_command_ends_though_its_ranks_cannot_be_started_yet(
    number: int, mode: tuple[str, ...], words: list[str], tmp_path: Path
) -> None:
    loading = tmp_path / "loading"
    process = started(tmp_path, f"open({str(loading)!r}, 'w'); time.sleep(600)", *mode)
    until = time.monotonic() + 60
    while not (loading.exists() and answers(process.pid, signal.SIGTERM)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)
    process.send_signal(number)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors
    for word in words:
        assert word in output + errors
    assert "Traceback" not in errors
