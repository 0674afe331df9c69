"""A program that a warm process turns into does what it would have done, and ends as it would have."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptrun.crash.warm import Program, WarmServers
from ckptrun.files import write_json
from ckptrun.probe import PLAN_VARIABLE, site_folder
from tests.support.job_python import JOB_PYTHON
from tests.support.strace import needs_strace

pytestmark = needs_strace

SCRIPT = """
import atexit, json, os, pickle, random, signal, sys, threading
class Own: pass
def told():
    return {
        "argv": sys.argv, "orig": sys.orig_argv, "path": sys.path[0], "file": __file__, "name": __name__, "cwd": os.getcwd(),
        "own": os.environ.get("OWN"), "class": pickle.loads(pickle.dumps(Own())).__class__.__module__,
        "warm": "http.client" in sys.modules, "main": sys.modules["__main__"].Own is Own, "input": sys.stdin.read(),
        "threads": threading.active_count(), "imported": sys.modules.get("neighbour") is not None,
    }
what = sys.argv[1]
if what == "tell":
    import neighbour
    print(json.dumps(told()))
elif what == "raise":
    raise KeyError("gone")
elif what == "exit":
    atexit.register(lambda: print("at exit"))
    sys.exit(7)
elif what == "words":
    sys.exit("the last words")
elif what == "interrupt":
    raise KeyboardInterrupt
elif what == "thread":
    atexit.register(lambda: print("at exit", end=""))
    threading.Thread(target=lambda: (threading.main_thread().join(), print("a thread"))).start()
    print("main", end=" ")
elif what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
elif what == "random":
    print(random.random())
elif what == "wait":
    def answer(*_):
        print("told", flush=True); sys.exit(3)
    signal.signal(signal.SIGTERM, answer)
    print(os.getpid(), flush=True)
    signal.pause()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    (folder / "neighbour.py").write_text("")
    (folder / "train.py").write_text(SCRIPT)
    return folder / "train.py"


@pytest.fixture(scope="module")
def plan(script: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("warm")
    environment = {**os.environ, "PYTHONPATH": str(site_folder())}
    programs = [
        Program(key=key, executable=JOB_PYTHON, environment=environment, modules=["http.client", "no.such.module"])
        for key in (str(script), "-m train")
    ]
    (folder / "output").mkdir()
    with WarmServers(programs, folder / "warm", output=folder / "output", cwd=folder) as servers:
        assert servers.is_ready
        facts = {"records": str(folder), "output": str(folder / "output"), "faults": [], "first_step": 0}
        write_json(
            folder / "plan.json", {**facts, "digest_every_steps": 1, "deterministic": False, "warm": servers.places}
        )
        write_json(folder / "cold.json", {**facts, "digest_every_steps": 1, "deterministic": False})
        yield folder / "plan.json"


def started(plan: Path, *command: str, cwd: Path, **more) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(site_folder()), PLAN_VARIABLE: str(plan), "OWN": "mine"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([JOB_PYTHON, *command], cwd=cwd, env=environment, text=True, **pipes, **more)


def both(plan: Path, *command: str, cwd: Path, given: str = "") -> list[tuple[int, str, str]]:
    """Exit code, output and errors: warm, and as ever."""
    found = []
    for one in (plan, plan.with_name("cold.json")):
        process = started(one, *command, cwd=cwd)
        output, errors = process.communicate(given, timeout=120)
        found.append((process.returncode, output, errors))
    return found


@pytest.mark.parametrize("options", [[], ["-u"], ["-m"]])
def test_a_program_finds_everything_as_it_would(options, plan, script, tmp_path) -> None:
    where = script.parent if options == ["-m"] else tmp_path
    name = "train" if options == ["-m"] else str(script)
    warm, cold = both(plan, *options, name, "tell", "a b", cwd=where, given="some input")
    assert warm[0] == cold[0] == 0, warm
    mine, theirs = json.loads(warm[1]), json.loads(cold[1])
    assert (mine.pop("warm"), theirs.pop("warm")) == (True, False)
    assert mine == theirs
    assert mine["class"] == mine["name"] == "__main__"
    assert mine["input"] == "some input"


@pytest.mark.parametrize(
    ("what", "code", "output"),
    [
        ("raise", 1, ""),
        ("exit", 7, "at exit\n"),
        ("words", 1, ""),
        ("interrupt", -signal.SIGINT, ""),
        ("thread", 0, "main a thread\nat exit"),
        ("kill", -signal.SIGKILL, ""),
    ],
)
def test_it_ends_as_it_would(what, code, output, plan, script, tmp_path) -> None:
    warm, cold = both(plan, str(script), what, cwd=tmp_path)
    assert warm == cold
    assert warm[:2] == (code, output)


def test_a_signal_reaches_it(plan, script, tmp_path) -> None:
    with started(plan, str(script), "wait", cwd=tmp_path) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) != process.pid
        process.terminate()
        assert process.stdout.read() == "told\n"
        assert process.wait(60) == 3


def test_it_is_gone_with_who_started_it(plan, script, tmp_path) -> None:
    with started(plan, str(script), "wait", cwd=tmp_path) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
    until = time.monotonic() + 60
    while Path(f"/proc/{child}").exists():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_nobody_knows_what_it_draws_first(plan, script, tmp_path) -> None:
    drawn = {started(plan, str(script), "random", cwd=tmp_path).communicate(timeout=120)[0] for _ in range(2)}
    assert len(drawn) == 2


def test_a_program_that_nobody_waits_for_starts_as_ever(plan, tmp_path) -> None:
    (tmp_path / "other.py").write_text("import sys; print('http.client' in sys.modules)")
    warm, cold = both(plan, "other.py", cwd=tmp_path)
    assert warm == cold == (0, "False\n", "")
