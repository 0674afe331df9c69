"""Notes which files outside of its run folder a rank opens, so that legs of a proof that share one are found.

An audit hook of the interpreter sees every ``open`` of Python code, in all threads and in forked loader workers. It
changes nothing: it draws nothing, keeps no file open but its own, and what goes wrong in it is noted, not raised. What
is opened past Python (a library of its own, a process that user code starts) it does not see, and notes that there was
such a one; a file that somebody else changed shows that when Python reads it, by the time of its last change.

Each process appends lines ``{"at", "how", "path", "changed"}``: times in nanoseconds since 1970; ``how`` is one of
:class:`How`; ``changed`` is when the file had last been changed before it was opened, or null. Torch-free.
"""

import contextlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

__all__ = ["FileWatch", "How", "watch_files"]

# What only looks like files on storage.
_NO_STORAGE = ("/proc/", "/sys/", "/dev/")
_SHARED_MEMORY = "/dev/shm/"  # where a cache may lie
_MOST_REMEMBERED = 100_000
# Libraries that read and write files by themselves.
_PAST_PYTHON = frozenset({"safetensors", "h5py", "lmdb", "pyarrow"})
# Programs of theirs (compilers, git) keep nothing of the run.
_NOT_OF_USERS = ("ckptrun", "torch", "triton")
_FROZEN_IMPORT = "<frozen importlib._bootstrap_external>"


class How(StrEnum):
    """What was done with a file."""

    read = "read"
    """Opened with its content, to be read or to be changed in place."""
    append = "append"
    """Opened to be written, with its content."""
    fresh = "fresh"
    """Made, emptied, or replaced."""
    missed = "missed"
    """Would have been read, but was not there."""
    removed = "removed"
    listed = "listed"
    """A folder whose entries were looked at."""
    unseen = "unseen"
    """A program was started, or a library loaded, that opens files past Python; ``path`` is its name."""
    error = "error"
    """The watch itself has failed; ``path`` says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileWatch:
    """What a rank shall note. Travels to the ranks."""

    log: Path
    """The folder of the logs."""
    since: int
    """Files that have not changed since then (nanoseconds) and are only read are no matter."""
    own: tuple[str, ...]
    """Folders of the proof itself."""


def watch_files(watch: FileWatch, *, name: str) -> None:
    """From here on, note what this process and its forked children open; ``name`` is that of the log."""
    watch.log.mkdir(parents=True, exist_ok=True)
    file = os.open(watch.log / f"{name}.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    sys.addaudithook(_Hook(file, watch))


class _Hook:
    """The audit hook. Called with the name of an event and its arguments, for every event of the interpreter."""

    def __init__(self, file: int, watch: FileWatch) -> None:
        self._file = file
        self._since = watch.since
        self._own = tuple(f"{folder.rstrip('/')}/" for folder in watch.own)
        self._seen: set[tuple[str, str]] = set()
        self._handlers: dict[str, Callable[..., None]] = {
            "open": self._opened,
            "os.rename": self._renamed,
            "os.link": self._linked,
            "os.symlink": self._linked,
            "os.truncate": self._truncated,
            "os.remove": self._removed,
            "os.listdir": self._listed,
            "os.scandir": self._listed,
            "sqlite3.connect": self._connected,
            "mmap.__new__": self._mapped,
            "subprocess.Popen": self._started,
            "os.posix_spawn": self._started,
            "os.system": self._started,
            "import": self._imported,
        }

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        handler = self._handlers.get(event)
        if handler is None:
            return
        try:
            handler(*arguments)
        except Exception as error:  # noqa: BLE001  # it must not reach the code that has opened the file
            self._write(How.error, f"{event}: {type(error).__name__}: {error}", None)

    def _opened(self, path: Any, mode: str | None, flags: int) -> None:
        place = self._place(path)
        if place is None:
            return
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_TRUNC | os.O_CREAT | os.O_APPEND)
        if not writes and (How.read, place) in self._seen:
            return
        status = _status(place)
        if status is not None and not stat.S_ISREG(status.st_mode):
            return
        # Nothing can be learned from a file that is empty, only from its being there.
        changed = None if status is None or not status.st_size else max(status.st_mtime_ns, status.st_ctime_ns)
        reads = not flags & (os.O_WRONLY | os.O_TRUNC)
        if reads and changed is not None and (writes or changed >= self._since):
            self._note(How.read, place, changed)
        elif reads and status is None and not writes:
            self._note(How.missed, place, None)
        elif reads and not writes:
            self._remember(How.read, place)
        if writes:
            is_fresh = changed is None or bool(flags & (os.O_TRUNC | os.O_EXCL))
            self._note(How.fresh if is_fresh else How.append, place, changed)

    def _renamed(self, source: Any, target: Any, *_: object) -> None:
        for path, how in ((source, How.removed), (target, How.fresh)):
            place = self._place(path)
            if place is not None:
                self._note(how, place, None)

    def _linked(self, source: Any, target: Any, *_: object) -> None:
        place = self._place(target)
        if place is not None:
            self._note(How.fresh, place, None)

    def _truncated(self, path: Any, *_: object) -> None:
        place = self._place(path)
        if place is not None:
            self._note(How.append, place, _changed(place))

    def _removed(self, path: Any, *_: object) -> None:
        place = self._place(path)
        if place is not None:
            self._note(How.removed, place, _changed(place))

    def _listed(self, path: Any) -> None:
        # Imports look into every folder that modules may lie in.
        if sys._getframe(2).f_code.co_filename == _FROZEN_IMPORT:
            return
        place = self._place("." if path is None else path)
        if place is not None:
            self._note(How.listed, place, None)

    def _connected(self, database: Any) -> None:
        text = os.fsdecode(database)
        place = self._place(text.removeprefix("file:").partition("?")[0] if text.startswith("file:") else text)
        if place is None or text == ":memory:" or not text:
            return
        changed = _changed(place)
        if changed is not None:
            self._note(How.read, place, changed)
        self._note(How.fresh if changed is None else How.append, place, changed)

    def _mapped(self, descriptor: int, *_: object) -> None:
        """Shared memory that has a name is not opened by ``open``."""
        if descriptor < 0:
            return
        place = os.readlink(f"/proc/self/fd/{descriptor}")  # noqa: PTH115  # as below
        if place.startswith(_SHARED_MEMORY) and not place.endswith(" (deleted)"):
            self._note(How.read, place, _changed(place))
            self._note(How.append, place, _changed(place))

    def _started(self, program: Any, *_: object) -> None:
        frame = sys._getframe(2)
        while frame.f_back is not None and frame.f_code.co_filename.endswith("/subprocess.py"):
            frame = frame.f_back
        if str(frame.f_globals.get("__name__")).partition(".")[0] not in _NOT_OF_USERS:
            self._note_unseen(os.fsdecode(program).partition(" ")[0].rpartition("/")[2])

    def _imported(self, module: str, *_: object) -> None:
        if module in _PAST_PYTHON:
            self._note_unseen(module)

    def _note_unseen(self, name: str) -> None:
        if (How.unseen, name) not in self._seen:
            self._remember(How.unseen, name)
            self._write(How.unseen, name, None)

    def _place(self, path: Any) -> str | None:
        """The full path, if it is a path, on storage, and not the proof's own."""
        if isinstance(path, int):
            return None
        place = os.path.abspath(os.fsdecode(path))  # noqa: PTH100  # quicker, and no new object that user code sees
        if place.startswith(_NO_STORAGE) and not place.startswith(_SHARED_MEMORY):
            return None
        return None if f"{place}/".startswith(self._own) else place

    def _note(self, how: How, place: str, changed: int | None) -> None:
        if (how, place) not in self._seen:
            self._remember(how, place)
            self._write(how, os.path.realpath(place), changed)

    def _remember(self, how: How, place: str) -> None:
        if len(self._seen) >= _MOST_REMEMBERED:
            self._seen.clear()
        self._seen.add((how, place))

    def _write(self, how: How, place: str, changed: int | None) -> None:
        line = {"at": time.time_ns(), "how": how, "path": place, "changed": changed}
        # The file may have been closed by a process that closes all it has inherited.
        with contextlib.suppress(OSError):
            os.write(self._file, json.dumps(line).encode() + b"\n")


def _status(place: str) -> os.stat_result | None:
    with contextlib.suppress(OSError):
        return os.stat(place)  # noqa: PTH116  # as above
    return None


def _changed(place: str) -> int | None:
    status = _status(place)
    return None if status is None else max(status.st_mtime_ns, status.st_ctime_ns)
