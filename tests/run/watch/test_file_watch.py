"""What a rank notes of the files it opens: real files, opened in all ways that Python has, in one other process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

OPENS = """
import mmap, os, pickle, shelve, sqlite3, subprocess, sys, threading
from pathlib import Path
from multiprocessing.shared_memory import SharedMemory
from ckptrun.run.watch.file_watch import FileWatch, watch_files

base = Path(sys.argv[1])
watch = FileWatch(log=base / "log", since=int(sys.argv[2]), own=(str(base / "run"),))
watch_files(watch, name="start_00000.rank_00000")
outside = base / "outside"

(outside / "made").write_text("1")
(outside / "made").read_text()
(outside / "old").read_text()
(outside / "changed").read_text()
with open(outside / "log", "a") as file:
    file.write("more")
with open(outside / "counter", "r+") as file:
    file.write("2")
try:
    open(outside / "absent")
except FileNotFoundError:
    pass
(outside / "beside").write_text("1")
os.replace(outside / "beside", outside / "replaced")
os.remove(outside / "gone")
os.listdir(outside)
with open(outside / "mapped", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
    memory[0] = 50
sqlite3.connect(outside / "base").close()
os.close(os.open(outside / "low", os.O_RDONLY))
thread = threading.Thread(target=(outside / "thread").read_text)
thread.start()
thread.join()
if os.fork() == 0:
    (outside / "child").read_text()
    os._exit(0)
os.wait()
(base / "run" / "own").write_text("1")
(base / "run" / "own").read_text()
subprocess.run(["/bin/true"], check=True)
os.system("true 1")
memory = SharedMemory(name=f"test_{os.getpid()}", create=True, size=8)
memory.close()
memory.unlink()
import json.tool
open("/dev/null", "w").close()
open("/proc/self/stat").close()
open(outside / "empty").close()
open(os.open(outside / "made", os.O_RDONLY)).close()
try:
    open(3.5)
except TypeError as error:
    print(error)
"""
EXISTING = ("changed", "log", "counter", "gone", "mapped", "base", "low", "thread", "child")


@pytest.fixture(scope="module")
def noted(tmp_path_factory) -> list[dict]:
    base = tmp_path_factory.mktemp("watched")
    for folder in ("outside", "run"):
        (base / folder).mkdir()
    old = base / "outside/old"
    old.write_text("1")
    since = old.stat().st_mtime_ns + 1
    while (probe := base / "probe").write_text("1") and probe.stat().st_mtime_ns < since:
        pass  # the clock of files stands still for milliseconds
    for name in EXISTING:
        (base / "outside" / name).write_text("1")
    (base / "outside/empty").touch()
    done = subprocess.run([sys.executable, "-c", OPENS, base, str(since)], capture_output=True, text=True, check=True)
    assert "float" in done.stdout, "an error of the user's own comes to the user"
    lines = (base / "log/start_00000.rank_00000.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def of(noted, name: str) -> list[str]:
    return [line["how"] for line in noted if Path(line["path"]).name == name]


@pytest.mark.parametrize(
    ("name", "hows"),
    [
        ("made", ["fresh", "read"]),
        # Nobody has changed it since: no leg can have.
        ("old", []),
        ("changed", ["read"]),
        ("log", ["append"]),
        ("counter", ["read", "append"]),
        ("absent", ["missed"]),
        ("beside", ["fresh", "removed"]),
        ("replaced", ["fresh"]),
        ("gone", ["removed"]),
        ("outside", ["listed"]),
        ("mapped", ["read", "append"]),
        ("base", ["read", "append"]),
        ("low", ["read"]),
        ("thread", ["read"]),
        ("child", ["read"]),
        ("own", []),
        ("null", []),
        ("stat", []),
        ("empty", []),
        # Whatever these open nobody sees; that they were there is said.
        ("true", ["unseen"]),
        ("json.tool", []),
    ],
)
def test_each_way_to_open_a_file_is_noted_once(noted, name, hows) -> None:
    assert of(noted, name) == hows


def test_shared_memory_with_a_name_is_noted_as_read_and_changed(noted) -> None:
    assert [line["how"] for line in noted if line["path"].startswith("/dev/shm/test_")] == ["read", "append"]


def test_nothing_else_is_noted_and_nothing_went_wrong(noted) -> None:
    assert {line["how"] for line in noted} == {"fresh", "read", "append", "missed", "removed", "listed", "unseen"}
    assert all(line["changed"] for line in noted if line["how"] == "read")
