"""What the system tells of other processes, which may end while it is asked."""

import os
import subprocess
import sys
import threading

from ckptrun.launch.stillness import Usage, usage_of
from ckptrun.processes import children_of, threads_of


def test_threads_and_children_of_a_process_are_found() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        assert {path.name for path in threads_of(os.getpid())} >= {str(os.getpid()), str(thread.native_id)}
        assert child.pid in children_of(os.getpid())
        assert children_of(child.pid) == []
    finally:
        done.set()
        thread.join()
        child.communicate()


def test_a_process_that_has_ended_has_none_and_uses_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert threads_of(child.pid) == []
    assert children_of(child.pid) == []
    assert usage_of(child.pid) == Usage(0.0, 0)


def test_a_process_that_ends_meanwhile_is_no_error(monkeypatch) -> None:
    """Between two looks at its folder: what `pathlib` makes of that is an error of its own."""
    child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    look = os.stat

    def end_first(path, *args, **kwargs):
        found = look(path, *args, **kwargs)
        if str(child.pid) in os.fspath(path).split("/") and child.poll() is None:
            child.communicate()
        return found

    monkeypatch.setattr(os, "stat", end_first)
    usage_of(child.pid)
    monkeypatch.undo()
    child.communicate() if child.poll() is None else None
