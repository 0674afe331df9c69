"""What the processes of a job did to the files in its folder, one operation after the other, from its system calls.

[Note: files from elsewhere]
A writer may make a file in a folder for temporary files and move it to the job's folder when it is whole (fsspec's
transactions, and with them Lightning). What becomes of such files is followed from the beginning, under their whole
paths: those in the job's folder are relative to it. Known are only files that the job itself has made.

Torch-free.
"""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ckptrun.crash.trace import CLONES, Call, path_of, read_calls, string_of, strings_of

__all__ = ["Deed", "Operation", "names_from_elsewhere", "read_operations"]

_OPENS = {"open": 0, "openat": 1, "openat2": 1, "creat": 0}
_WRITES = ("write", "pwrite64", "writev", "pwritev", "pwritev2")
_MAKES = ("O_CREAT", "O_TRUNC")
_BRINGS = (b"rename", b" link", b"copy_file_range", b"sendfile", b"splice")


class Deed(StrEnum):
    """What an operation does."""

    open = "open"
    """A file is made, or shortened to nothing."""
    write = "write"
    resize = "resize"
    make_folder = "make_folder"
    remove = "remove"
    """A file, a link or an empty folder."""
    rename = "rename"
    link = "link"
    symlink = "symlink"
    sync = "sync"
    """What was done to a file, or to the names in a folder, is on the disk."""
    sync_all = "sync_all"


@dataclass(slots=True, kw_only=True)
class Operation:
    """One change of the files in the job's folder. Paths are relative to it; see [Note: files from elsewhere]."""

    deed: Deed
    path: str
    other: str = ""
    """What is renamed to, linked to, or, for a symbolic link, its text."""
    call: str
    """The system call."""
    data: bytes = b""
    offset: int | None = 0
    """Where is written; None: at the end of the file."""
    size: int = 0
    """What the file is cut to, or made as long as."""
    is_new: bool = False
    """Whether ``open`` may make the file."""
    is_cut: bool = False
    """Whether ``open`` shortens it to nothing."""
    only_grows: bool = False
    """Whether ``resize`` leaves a longer file as it is."""
    process: int
    time: float
    rank: int = 0
    step: int = 0
    """How many steps the rank had taken in this start."""
    meetings: int = 0
    """How many collectives the rank had come through."""
    where: tuple[str, ...] = ()
    """The trainer's code that did it, innermost first: ``file:line function``."""

    @property
    def is_elsewhere(self) -> bool:
        """Whether it changes nothing in the job's folder."""
        return self.path.startswith("/") and (self.deed not in (Deed.rename, Deed.link) or self.other.startswith("/"))

    def __str__(self) -> str:
        match self.deed:
            case Deed.open:
                return f"{self.call} of {self.path}"
            case Deed.write:
                at = "at its end" if self.offset is None else f"at byte {self.offset}"
                return f"{self.call} of {len(self.data)} bytes to {self.path} {at}"
            case Deed.resize:
                return f"{self.call} of {self.path} to {self.size} bytes"
            case Deed.rename | Deed.link:
                return f"{self.call} of {self.path} to {self.other}"
            case Deed.symlink:
                return f"{self.call} of {self.path} to {self.other}"
            case Deed.make_folder | Deed.remove | Deed.sync:
                return f"{self.call} of {self.path}"
            case Deed.sync_all:
                return self.call


@dataclass(slots=True)
class _Open:
    """An open file, which descriptors of several processes may stand for."""

    appends: bool
    position: int = 0


@dataclass(slots=True)
class _Process:
    """What a process has said, and where it is."""

    number: int
    cwd: str
    files: dict[int, _Open] = field(default_factory=dict)
    rank: int | None = None
    step: int = 0
    meetings: int = 0
    places: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Path -> the code that was about to do something with it; the empty one: with the last of all."""
    parent: "_Process | None" = None


@dataclass(slots=True)
class Reading:
    """What was found beside operations."""

    unknown: set[str] = field(default_factory=set)
    """Calls that change files in a way that is not understood here."""


def names_from_elsewhere(trace: Path, root: Path) -> set[str]:
    """The last names of what may be moved, linked or copied from elsewhere to ``root``."""
    inside, found = f"{root}/", set[str]()
    # Backwards, as a file may be moved several times.
    for before, after in reversed(list(_brought(trace))):
        may_come = after.startswith(inside) or not after.startswith("/") or _last_name(after) in found
        if may_come and not before.startswith(inside):
            found.add(_last_name(before))
    return found - {""}


def _brought(trace: Path) -> Iterator[tuple[str, str]]:
    """What is moved, linked or copied, and to where."""
    for call in read_calls(trace, names=_BRINGS):
        if call.name in ("copy_file_range", "splice", "sendfile"):
            into, source = (2, 0) if call.name != "sendfile" else (0, 1)
            yield path_of(call.arguments[source]) or "", path_of(call.arguments[into]) or ""
        else:
            paths = strings_of(call.arguments)
            yield paths[0], paths[-1]


def _last_name(path: str) -> str:
    return os.path.basename(path.rstrip("/"))  # noqa: PTH119


def read_operations(
    calls: Iterator[Call], *, root: Path, records: Path, cwd: Path, reading: Reading, from_elsewhere: Collection[str]
) -> Iterator[Operation]:
    """Find what changes files in ``root``, and files that come there.

    Args:
        calls: Of all processes of the job.
        root: The job's folder, without links in its path.
        records: Where the probe writes to: by what it writes, ranks and steps are known.
        cwd: Where the command was started.
        reading: Filled meanwhile.
        from_elsewhere: See :func:`names_from_elsewhere`.
    """
    reader = _Reader(root, records, cwd, reading, from_elsewhere)
    for call in calls:
        yield from reader.read(call)


class _Reader:
    def __init__(self, root: Path, records: Path, cwd: Path, reading: Reading, from_elsewhere: Collection[str]) -> None:
        self._from_elsewhere = set(from_elsewhere)
        self._root = str(root)
        self._records = str(records)
        self._cwd = str(cwd)
        self._reading = reading
        self._threads: dict[int, _Process] = {}

    def read(self, call: Call) -> Iterator[Operation]:
        process = self._threads.get(call.thread)
        if process is None:
            process = self._threads[call.thread] = _Process(call.thread, self._cwd)
        name = call.name
        if name in CLONES:
            self._clone(process, call)
        elif name in ("chdir", "fchdir"):
            argument = call.arguments[0]
            place = string_of(argument).decode(errors="surrogateescape") if name == "chdir" else path_of(argument)
            process.cwd = os.path.join(process.cwd, place or "")  # noqa: PTH118
        elif name in _OPENS:
            yield from self._opened(process, call)
        elif name in _WRITES:
            yield from self._written(process, call)
        else:
            yield from self._other(process, call)

    def _clone(self, process: _Process, call: Call) -> None:
        flags = b",".join(call.arguments)
        if b"CLONE_THREAD" in flags:
            self._threads[call.result] = process
            return
        shares = b"CLONE_FILES" in flags
        self._threads[call.result] = _Process(
            call.result, process.cwd, files=process.files if shares else dict(process.files), parent=process
        )

    # --- files ---

    def _opened(self, process: _Process, call: Call) -> Iterator[Operation]:
        path = path_of(call.rest)
        process.files.pop(call.result, None)
        relative = self._inside(path)
        if relative is None:
            return
        flags = call.arguments[_OPENS[call.name] + 1].decode() if call.name != "creat" else "O_WRONLY|O_CREAT|O_TRUNC"
        if not re.search("O_WRONLY|O_RDWR", flags):
            return
        if "O_TMPFILE" in flags:
            self._reading.unknown.add("open with O_TMPFILE")
            return
        process.files[call.result] = _Open(appends="O_APPEND" in flags)
        if any(flag in flags for flag in _MAKES):
            # What lay elsewhere before, nobody knows.
            is_new = "O_CREAT" in flags and (not relative.startswith("/") or bool(re.search("O_EXCL|O_TRUNC", flags)))
            yield self._operation(process, call, Deed.open, relative, is_new=is_new, is_cut="O_TRUNC" in flags)

    def _written(self, process: _Process, call: Call) -> Iterator[Operation]:
        path = path_of(call.arguments[0])
        if path is not None and path.startswith(self._records):
            self._heard(process, string_of(call.arguments[1]))
            return
        relative = self._inside(path)
        if relative is None or not call.result:
            return
        data = string_of(call.arguments[1])[: call.result]
        file = process.files.get(_descriptor(call.arguments[0]))
        if len(data) < call.result or file is None:
            self._reading.unknown.add(f"{call.name} to {relative}")
            return
        if call.name.startswith("p"):
            # Linux appends to files that were opened so, whatever offset is given.
            offset = None if file.appends else _number(call.arguments[3])
            yield self._operation(process, call, Deed.write, relative, data=data, offset=offset)
            return
        offset = None if file.appends else file.position
        yield self._operation(process, call, Deed.write, relative, data=data, offset=offset)
        file.position += call.result

    def _other(self, process: _Process, call: Call) -> Iterator[Operation]:
        match call.name:
            case "dup" | "dup2" | "dup3" | "fcntl":
                _duplicate(process, call)
            case "lseek":
                held = process.files.get(_descriptor(call.arguments[0]))
                if held is not None:
                    held.position = call.result
            case "ftruncate" | "fallocate" | "fsync" | "fdatasync":
                yield from self._of_descriptor(process, call)
            case "sync" | "syncfs":
                yield self._operation(process, call, Deed.sync_all, "")
            case "mmap":
                yield from self._mapped(process, call)
            case "copy_file_range" | "sendfile" | "splice" | "ioctl":
                yield from self._copied(process, call)
            case _:
                yield from self._of_names(process, call)

    def _mapped(self, process: _Process, call: Call) -> Iterator[Operation]:
        """A file is mapped to memory to be written: its bytes come by no call, and are those that it has in the end."""
        relative = self._inside(path_of(call.arguments[4]))
        if relative is not None and b"MAP_SHARED" in call.arguments[3] and b"PROT_WRITE" in call.arguments[2]:
            yield self._operation(process, call, Deed.write, relative)

    def _of_descriptor(self, process: _Process, call: Call) -> Iterator[Operation]:
        relative = self._inside(path_of(call.arguments[0]))
        if relative is None:
            return
        if call.name in ("fsync", "fdatasync"):
            yield self._operation(process, call, Deed.sync, relative)
        elif call.name == "ftruncate":
            yield self._operation(process, call, Deed.resize, relative, size=_number(call.arguments[1]))
        elif call.arguments[1] in (b"0", b"0x0"):
            size = _number(call.arguments[2]) + _number(call.arguments[3])
            yield self._operation(process, call, Deed.resize, relative, size=size, only_grows=True)
        elif b"KEEP_SIZE" not in call.arguments[1] or b"PUNCH" in call.arguments[1]:
            self._reading.unknown.add(f"fallocate of {relative}")

    def _copied(self, process: _Process, call: Call) -> Iterator[Operation]:
        """Bytes that go from file to file within the kernel: they are found by who replays them."""
        if call.name == "ioctl":
            relative = self._inside(path_of(call.arguments[0]))
            if relative is not None and b"CLONE" in call.arguments[1]:
                self._reading.unknown.add(f"ioctl(FICLONE) of {relative}")
            return
        into, source = (2, 0) if call.name != "sendfile" else (0, 1)
        relative = self._inside(path_of(call.arguments[into]))
        if relative is None or not call.result:
            return
        held = process.files.get(_descriptor(call.arguments[into]))
        origin = path_of(call.arguments[source])
        if held is None or origin is None or not Path(origin).is_absolute():
            self._reading.unknown.add(f"{call.name} to {relative}")
            return
        yield self._operation(
            process, call, Deed.write, relative, other=origin, size=call.result,
            offset=None if held.appends else held.position,
        )  # fmt: skip
        held.position += call.result

    def _of_names(self, process: _Process, call: Call) -> Iterator[Operation]:
        paths = list(self._paths(process, call.arguments))
        inside = [None if path is None else self._inside(path) for path in paths]
        first = inside[0] if inside else None
        match call.name:
            case "mkdir" | "mkdirat" if first is not None:
                yield self._operation(process, call, Deed.make_folder, first)
            case "unlink" | "unlinkat" | "rmdir" if first is not None:
                yield self._operation(process, call, Deed.remove, first)
            case "truncate" if first is not None:
                yield self._operation(process, call, Deed.resize, first, size=_number(call.arguments[1]))
            case "rename" | "renameat" | "renameat2":
                yield from self._renamed(process, call, paths, inside)
            case "link" | "linkat" if inside[1] is not None:
                if first is None:
                    self._reading.unknown.add(f"{call.name} to {inside[1]}")
                else:
                    yield self._operation(process, call, Deed.link, first, other=inside[1])
            case "symlink" | "symlinkat":
                text = string_of(call.arguments[0]).decode(errors="surrogateescape")
                (path,) = self._paths(process, call.arguments[1:])
                relative = self._inside(path)
                if relative is not None:
                    yield self._operation(process, call, Deed.symlink, relative, other=text)

    def _renamed(
        self, process: _Process, call: Call, paths: Sequence[str | None], inside: Sequence[str | None]
    ) -> Iterator[Operation]:
        before, after = inside[:2]
        if call.name == "renameat2" and b"EXCHANGE" in call.arguments[-1]:
            self._reading.unknown.add("renameat2 with RENAME_EXCHANGE")
        elif before is not None and after is not None:
            yield self._operation(process, call, Deed.rename, before, other=after)
        elif before is not None:
            # What leaves the folder is gone from it.
            yield self._operation(process, call, Deed.remove, before)
        elif after is not None and after.startswith("/"):
            yield self._operation(process, call, Deed.remove, after)
        elif after is not None:
            self._reading.unknown.add(f"{call.name} of {paths[0]} to {after}")

    def _paths(self, process: _Process, arguments: Sequence[bytes]) -> Iterator[str | None]:
        """Paths that are given as names, relative to the descriptor before them or to where the process is."""
        base = process.cwd
        for argument in arguments:
            if argument.startswith(b'"'):
                name = string_of(argument).decode(errors="surrogateescape")
                yield os.path.normpath(os.path.join(base, name))  # noqa: PTH118
                base = process.cwd
            else:
                base = path_of(argument) or process.cwd

    def _inside(self, path: str | None) -> str | None:
        """A path relative to the job's folder, or whole if it may come there; None: it is elsewhere."""
        if path is None or not path.startswith("/"):
            return None
        path = os.path.normpath(path)
        if path == self._root:
            return ""
        if path.startswith(self._root + "/"):
            return path[len(self._root) + 1 :]
        comes = not self._from_elsewhere.isdisjoint(path.split("/")) and not path.startswith(self._records)
        return path if comes else None

    def _operation(self, process: _Process, call: Call, deed: Deed, path: str, **more: Any) -> Operation:
        teller = process
        while teller.rank is None and teller.parent is not None:
            teller = teller.parent
        where = process.places.get(path) or process.places.get(more.get("other", "")) or process.places.get("", ())
        return Operation(
            deed=deed, path=path, call=call.name, process=process.number, time=call.time, rank=teller.rank or 0,
            step=teller.step, meetings=teller.meetings, where=where, **more,
        )  # fmt: skip

    # --- what the probe says ---

    def _heard(self, process: _Process, line: bytes) -> None:
        for text in line.splitlines():
            try:
                event: Mapping[str, Any] = json.loads(text)
            except ValueError:
                continue
            if "rank" in event:
                process.rank = event["rank"]
            match event["event"]:
                case "update":
                    process.step = event["step"]
                case "meeting":
                    process.meetings += 1
                case "place":
                    where = tuple(event["frames"])
                    process.places[""] = where
                    for path in event["names"]:
                        relative = self._inside(path)
                        if relative is not None:
                            process.places[relative] = where


def _duplicate(process: _Process, call: Call) -> None:
    """Another descriptor stands for the same open file."""
    if call.name == "fcntl" and b"F_DUPFD" not in call.arguments[1]:
        return
    held = process.files.get(_descriptor(call.arguments[0]))
    process.files.pop(call.result, None)
    if held is not None:
        process.files[call.result] = held


def _descriptor(argument: bytes) -> int:
    found = re.match(rb"-?\d+", argument)
    return int(found[0]) if found else -1


def _number(argument: bytes) -> int:
    return int(argument.split(b"*")[0].strip() or b"0", 0)
