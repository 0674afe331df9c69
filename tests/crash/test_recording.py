"""Whatever a process does to files, the record of its calls leads to what lies there in the end, byte by byte."""

import subprocess
import sys
from pathlib import Path

import pytest

from ckptrun.crash.files import Files
from ckptrun.crash.operations import Deed
from ckptrun.crash.recording import Recording, read_recording
from ckptrun.crash.states import crash_states
from ckptrun.crash.trace import CHANGES, strace
from ckptrun.foreign.records import Heard
from tests.support.strace import needs_strace

pytestmark = needs_strace

_HEARD = Heard(ranks=(), processes=0, exceptions=(), errors=())

CASES = {
    "written, appended, overwritten": """
with open("a", "wb") as f: f.write(b"0123456789")
with open("a", "ab") as f: f.write(b"ab")
with open("a", "r+b") as f: f.seek(3); f.write(b"XY"); f.seek(0, 2); f.write(b"end")
with open("a", "wb") as f: f.write(b"new")
""",
    "beyond the end": 'with open("a", "wb") as f: f.seek(100); f.write(b"x"); f.truncate(50); f.truncate(70)',
    "with offsets": """
d = os.open("a", os.O_RDWR | os.O_CREAT)
os.pwrite(d, b"later", 10); os.pwrite(d, b"first", 0); os.writev(d, [b"one", b"", b"two"]); os.write(d, b"three")
os.pwritev(d, [b"four", b"five"], 40); os.posix_fallocate(d, 0, 100); os.fsync(d); os.lseek(d, 5, 0); os.write(d, b"!")
""",
    "appended at any offset": """
d = os.open("a", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.write(d, b"one"); os.lseek(d, 0, 0); os.write(d, b"two"); os.pwrite(d, b"three", 0)
""",
    "names": """
os.makedirs("x/y/z"); open("x/a", "w").write("a"); os.rename("x/a", "x/y/b"); os.replace("x/y/b", "c")
os.link("c", "x/c"); open("x/c", "a").write("more"); os.symlink("x/y", "to"); open("to/d", "w").write("d")
os.symlink("../c", "x/up"); open("x/up", "a").write("!"); os.rename("x", "w"); os.unlink("c"); os.rmdir("w/y/z")
os.makedirs("gone/in"); open("gone/in/f", "w").write("f"); shutil.rmtree("gone"); os.truncate("w/c", 2)
""",
    "copies": """
open("a", "wb").write(bytes(range(256)) * 40); shutil.copy("a", "b"); shutil.copyfile(sys.executable, "big")
shutil.copytree(".", "/tmp/elsewhere-%d" % os.getpid()); shutil.rmtree("/tmp/elsewhere-%d" % os.getpid())
shutil.move("b", "moved")
""",
    "made elsewhere and moved here": """
import tempfile
def put(name, text):
    d, draft = tempfile.mkstemp(dir="..")
    with os.fdopen(d, "w") as f: f.write(text)
    return draft
os.replace(put("a", "one"), "a"); os.replace(put("a", "two"), "a"); os.link(put("b", "three"), "b")
folder = tempfile.mkdtemp(dir=".."); os.mkdir(folder + "/in"); open(folder + "/in/f", "w").write("f" * 100000)
os.rename(folder, "c"); os.rename("a", "../kept"); open("../kept", "a").write("!"); os.rename("../kept", "d")
twice = put("e", "five"); os.rename(twice, twice + "x"); os.rename(twice + "x", "e")
""",
    "made elsewhere, copied here and removed there": """
open("../a", "wb").write(b"a" * 100000); shutil.copyfile("../a", "b"); os.unlink("../a")
open("../a", "wb").write(b"b" * 100); shutil.copyfile("../a", "c"); os.unlink("../a")
""",
    "descriptors that stand for one file": """
d = os.open("a", os.O_WRONLY | os.O_CREAT); e = os.dup(d); os.write(d, b"one"); os.write(e, b"two")
if os.fork() == 0:
    os.write(d, b"three"); os._exit(0)
os.wait(); os.write(e, b"four"); os.close(d); d = os.open("b", os.O_WRONLY | os.O_CREAT); os.write(d, b"five")
""",
    "threads": """
import threading
def put(i):
    for n in range(20):
        with open(f"{i}.tmp", "wb") as f: f.write(bytes([i]) * (n + 1))
        os.replace(f"{i}.tmp", str(i))
threads = [threading.Thread(target=put, args=(i,)) for i in range(6)]
[t.start() for t in threads]; [t.join() for t in threads]
""",
    "programs": """
import subprocess
os.mkdir("in"); os.chdir("in"); subprocess.run("echo one > a; echo two >> a; mv a b; cp b ../c; ln -s b l; rm b", shell=True)
""",
    "strange names": """
for name in ("a b", 'quote"', "comma, (bracket)", "ümlaut", "new\\nline", "<angle>"):
    open(name, "w").write(name); os.rename(name, name + "'")
""",
}


def record(folder: Path, code: str) -> Recording:
    output = folder / "output"
    output.mkdir()
    trace = folder / "calls"
    subprocess.run(
        [*strace(trace, CHANGES), sys.executable, "-c", f"import os, shutil, sys\n{code}"], cwd=output, check=True
    )
    return read_recording(trace, heard=_HEARD, saved=(), output=output, records=folder / "records", cwd=output)


@pytest.mark.parametrize("name", CASES)
def test_the_record_leads_to_what_lies_there(name: str, tmp_path: Path) -> None:
    recording = record(tmp_path, CASES[name])
    assert recording.unknown == []
    assert recording.notes == []
    assert len(recording.operations) > 2


def test_a_change_that_no_call_shows_is_found(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "before").write_text("was here")
    (tmp_path / "output").rename(tmp_path / "kept")
    recording = record(tmp_path, 'open("a", "w").write("a"); os.rename("../kept/before", "../output/before")')
    (unknown,) = [text for text in recording.unknown if "lead" not in text]
    assert "kept/before to before" in unknown
    assert recording.unknown[-1] == "the record does not lead to what lies in before"


def test_what_is_moved_here_comes_at_once(tmp_path: Path) -> None:
    code = 'open("../draft", "wb").write(b"0123"); os.rename("../draft", "new")'
    recording = record(tmp_path, code)
    states = crash_states(Files(), recording.operations, block_bytes=2, with_power_cuts=True)
    assert [{path: entry.content.part(0, 9) for path, entry in state.tree.entries.items()} for state in states] == [
        {},
        {"new": b"0123"},
        {"new": b""},
        {"new": b"01"},
        {"new": b"\0\0\0\0"},
    ]


def test_bytes_that_come_through_memory_are_those_of_the_end(tmp_path: Path) -> None:
    code = """
import mmap
with open("a", "w+b") as f:
    f.truncate(4096)
    with mmap.mmap(f.fileno(), 4096) as m: m[:3] = b"abc"
os.rename("a", "b")
"""
    recording = record(tmp_path, code)
    assert recording.unknown == []
    assert recording.notes == ["the order in which bytes came to a, written through memory"]
    (written,) = (one for one in recording.operations if one.deed is Deed.write)
    assert written.data == b"abc".ljust(4096, b"\0")


def test_bytes_that_came_through_memory_and_are_gone_make_the_record_incomplete(tmp_path: Path) -> None:
    code = """
import mmap
with open("a", "w+b") as f:
    f.truncate(4096)
    with mmap.mmap(f.fileno(), 4096) as m: m[:3] = b"abc"
os.remove("a")
"""
    assert record(tmp_path, code).unknown == ["a was written through memory, and is there no more"]


def test_a_write_has_its_bytes_its_place_and_its_process(tmp_path: Path) -> None:
    recording = record(tmp_path, 'd = os.open("a", 65); os.write(d, b"one"); os.write(d, b"two")')
    first, second = (one for one in recording.operations if one.deed is Deed.write)
    assert (first.data, first.offset, second.data, second.offset) == (b"one", 0, b"two", 3)
    assert str(second) == "write of 3 bytes to a at byte 3"
    assert first.process == second.process
