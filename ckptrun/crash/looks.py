"""What a start looked at in the job's folder: two states that agree on all of that are the same to it. Torch-free."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from ckptrun.crash.files import Entry, Tree
from ckptrun.crash.trace import CLONES, Call, path_of, read_calls, string_of

__all__ = ["Looked", "read_looks"]

_ASKS = (
    "stat",
    "lstat",
    "newfstatat",
    "statx",
    "access",
    "faccessat",
    "faccessat2",
    "readlink",
    "readlinkat",
    "statfs",
)


@dataclass(slots=True)
class Looked:
    """Paths, relative to the job's folder, that calls of a start have named, whether there was something or not."""

    files: set[str] = field(default_factory=set)
    """What was opened, or done something else with than to ask about it: its bytes count."""
    asked: set[str] = field(default_factory=set)
    """What was only asked about: that it is there, what it is, and whether it has no bytes, all of them, or some."""
    folders: set[str] = field(default_factory=set)
    """Folders that were opened to be listed."""

    def seen_in(self, tree: Tree, whole: Tree) -> tuple[object, ...]:
        """Everything that the start has seen of ``tree``, or would have seen there.

        Args:
            tree: What lies in the folder.
            whole: What lies there when the save is over.
        """
        # Folders on the way may be links.
        on_the_way = {parent for path in self.files | self.asked | self.folders for parent in _parents(path)}
        opened = self.files | {tree.resolved(path) for path in self.files}
        asked = self.asked | self.folders | on_the_way
        asked |= {tree.resolved(path) for path in asked}
        folders = self.folders | {tree.resolved(folder) for folder in self.folders}
        seen: list[object] = [(path, tree.entries[path].key) for path in sorted(opened) if path in tree.entries]
        for path in sorted(asked - opened):
            if path in tree.entries:
                seen.append((path, _answer(tree.entries[path], whole.entries.get(path))))
        for folder in sorted(folders):
            names = tree.names_in(folder)
            kinds = [tree.entries[f"{folder}/{name}" if folder else name].content is None for name in names]
            seen.append((folder, tuple(zip(names, kinds, strict=True))))
        return tuple(seen)


def read_looks(traces: Mapping[Path, int], *, root: Path, cwd: Path) -> Looked:
    """Find what a start looked at.

    Args:
        traces: Of the calls that name files -> the byte from which they are of this start.
        root: The job's folder, without links in its path.
        cwd: Where the command was started.
    """
    looked = Looked()
    places: dict[int, str] = {}
    prefix = f"{root}/"
    calls = (read_calls(trace, with_failed=True, begin=begin) for trace, begin in traces.items())
    for call in chain.from_iterable(calls):
        place = places.setdefault(call.thread, str(cwd))
        if call.name in CLONES:
            # Threads that change their folder for all others are not followed.
            places[call.result] = place
            continue
        if call.name in ("chdir", "fchdir"):
            argument = call.arguments[0]
            name = string_of(argument).decode(errors="surrogateescape") if call.name == "chdir" else path_of(argument)
            if call.result == 0:
                places[call.thread] = os.path.join(place, name or "")  # noqa: PTH118
            continue
        for path in _named(call, place):
            if path == str(root) or path.startswith(prefix):
                _among(looked, call).add(path[len(prefix) :])
    for paths in (looked.files, looked.asked):
        paths.discard("")
    return looked


def _among(looked: Looked, call: Call) -> set[str]:
    """Which of the three sets a path belongs to that a call names."""
    if call.name in _ASKS:
        return looked.asked
    return looked.folders if b"O_DIRECTORY" in b",".join(call.arguments) else looked.files


def _answer(entry: Entry, whole: Entry | None) -> str:
    """What is said to who asks about a file."""
    if entry.content is None:
        return entry.key
    if not entry.content.size:
        return "no bytes"
    is_all = whole is not None and whole.content is not None and whole.content.size == entry.content.size
    return "all bytes" if is_all else "some bytes"


def _named(call: Call, cwd: str) -> list[str]:
    """Every path that a call names, absolute; and where an opened one led."""
    found, base = [], cwd
    for argument in call.arguments:
        if argument.startswith(b'"'):
            name = string_of(argument).decode(errors="surrogateescape")
            found.append(os.path.normpath(os.path.join(base, name)))  # noqa: PTH118
            base = cwd
        else:
            base = path_of(argument) or cwd
    led = path_of(call.rest)
    return [*found, led] if led is not None else found


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]
