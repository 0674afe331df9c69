"""What a start looked at in the job's folder: two states that agree on all of that are the same to it. Torch-free."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from ckptrun.crash.files import Tree
from ckptrun.crash.trace import Call, path_of, read_calls, string_of

__all__ = ["Looked", "read_looks"]

_CLONES = ("clone", "clone3", "fork", "vfork")


@dataclass(slots=True)
class Looked:
    """Paths, relative to the job's folder, that calls of a start have named, whether there was something or not."""

    files: set[str] = field(default_factory=set)
    folders: set[str] = field(default_factory=set)
    """Folders that were opened to be listed."""

    def seen_in(self, tree: Tree) -> tuple[object, ...]:
        """Everything that the start has seen of ``tree``, or would have seen there."""
        paths = self.files | self.folders
        # Folders on the way may be links.
        paths |= {parent for path in paths for parent in _parents(path)}
        paths |= {tree.resolved(path) for path in paths}
        folders = self.folders | {tree.resolved(folder) for folder in self.folders}
        seen: list[object] = [
            (path, entry.key) for path in sorted(paths) if (entry := tree.entries.get(path)) is not None
        ]
        for folder in sorted(folders):
            names = tree.names_in(folder)
            kinds = [tree.entries[f"{folder}/{name}" if folder else name].content is None for name in names]
            seen.append((folder, tuple(zip(names, kinds, strict=True))))
        return tuple(seen)


def read_looks(trace: Path, *, root: Path, cwd: Path) -> Looked:
    """Find what a start looked at.

    Args:
        trace: Of the calls that name files.
        root: The job's folder, without links in its path.
        cwd: Where the command was started.
    """
    looked = Looked()
    places: dict[int, str] = {}
    prefix = f"{root}/"
    for call in read_calls(trace, with_failed=True):
        place = places.setdefault(call.thread, str(cwd))
        if call.name in _CLONES:
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
                relative = path[len(prefix) :]
                (looked.folders if b"O_DIRECTORY" in b",".join(call.arguments) else looked.files).add(relative)
    looked.files.discard("")
    return looked


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
