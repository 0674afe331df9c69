"""A model of the job's folder: operations are done to it, and what lies there can be told, built and compared.

[Note: what reaches the disk]
A call that has returned has changed what other processes see, and nothing else. Until ``fsync`` of the file (for its
bytes and its length) or of the folder (for the names in it) each change may or may not have reached the disk, on its
own and in any order: that is the model of ALICE (Pillai et al., OSDI 2014). A *change* is what is kept or lost.

Torch-free.
"""

import hashlib
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ckptrun.crash.content import EMPTY, Content
from ckptrun.crash.operations import Operation

__all__ = ["Change", "Entry", "Files", "Tree", "Unreplayable", "tree_with"]

_DEEPEST_LINKS = 40
_TOP = 0
_ELSEWHERE = 1
"""Where whole paths begin, which are in no tree."""


class Unreplayable(Exception):
    """An operation that cannot have succeeded in this state of the files."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What a path is: a folder, a file with its bytes, or a link with its text."""

    content: Content | None = None
    target: str | None = None
    time: float = 0.0

    @property
    def key(self) -> str:
        """Two with the same key are the same to who reads them."""
        if self.content is not None:
            return self.content.key
        return "folder" if self.target is None else f"link {self.target}"


class Tree:
    """Everything that lies in the folder at one time.

    Args:
        entries: Path, relative to the folder -> what it is.
    """

    def __init__(self, entries: Mapping[str, Entry]) -> None:
        self.entries = entries
        text = "\n".join(f"{path}\t{entry.key}" for path, entry in sorted(entries.items()))
        self.key = hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=16).hexdigest()

    def below(self, place: str) -> dict[str, str]:
        """Paths in ``place``, itself included -> their keys; empty where there is nothing."""
        return {
            path: entry.key
            for path, entry in self.entries.items()
            if not place or path == place or path.startswith(f"{place}/")
        }

    def names_in(self, folder: str) -> list[str]:
        """What a listing of ``folder`` shows, in order."""
        depth = f"{folder}/" if folder else ""
        return sorted(
            path[len(depth) :] for path in self.entries if path.startswith(depth) and "/" not in path[len(depth) :]
        )

    def resolved(self, path: str) -> str:
        """``path`` with the links followed that lead elsewhere in the folder."""
        for _ in range(_DEEPEST_LINKS):
            parts = path.split("/")
            for count in range(1, len(parts) + 1):
                head = "/".join(parts[:count])
                entry = self.entries.get(head)
                if entry is not None and entry.target is not None and not entry.target.startswith("/"):
                    path = os.path.normpath(os.path.join(os.path.dirname(head), entry.target, *parts[count:]))  # noqa: PTH118, PTH120
                    break
            else:
                return path
        return path

    def build(self, folder: Path) -> None:
        """Make it all in ``folder``, which is emptied first, with the times that it had."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for path, entry in sorted(self.entries.items()):
            place = folder / path
            if entry.content is not None:
                with place.open("wb") as file:
                    entry.content.write_to(file)
            elif entry.target is not None:
                place.symlink_to(entry.target)
            else:
                place.mkdir()
        for path, entry in sorted(self.entries.items(), reverse=True):
            os.utime(folder / path, (entry.time, entry.time), follow_symlinks=False)


@dataclass(slots=True)
class _Node:
    """A file, a folder or a link, whatever it is called."""

    content: Content | None = None
    names: dict[str, int] | None = None
    target: str | None = None
    time: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of one file or folder, which reaches the disk or does not."""

    node: int
    names: tuple[tuple[str, int | None], ...] = ()
    """Of a folder: names, and what they stand for from then on."""
    data: bytes | None = None
    offset: int = 0
    size: int | None = None
    also: "Change | None" = None
    """The other half of a rename from folder to folder, which never happens by halves."""
    time: float
    by: Operation = field(compare=False)


class Files:
    """The folder, and what is done to it. Begins empty."""

    def __init__(self) -> None:
        self._nodes: dict[int, _Node] = {_TOP: _Node(names={}), _ELSEWHERE: _Node(names={})}
        self._next = _ELSEWHERE + 1

    def copy(self) -> "Files":
        """One that can be changed on its own."""
        other = Files()
        other._nodes = {
            number: _Node(node.content, None if node.names is None else dict(node.names), node.target, node.time)
            for number, node in self._nodes.items()
        }
        other._next = self._next
        return other

    def tree(self) -> Tree:
        """What lies there."""
        nodes = ((path, self._nodes[number]) for path, number in self._paths("", _TOP))
        return Tree({path: Entry(node.content, node.target, node.time) for path, node in nodes})

    def apply(self, operation: Operation) -> list[Change]:
        """Do one operation; return the changes of which it consists.

        Raises:
            Unreplayable: Something that it needs is not there.
        """
        try:
            changes = getattr(self, f"_{operation.deed.value}")(operation)
        except (KeyError, TypeError, AttributeError):
            raise Unreplayable(str(operation)) from None
        for change in changes:
            self.do(change)
        return list(changes)

    def do(self, change: Change) -> None:
        """Do one change."""
        node = self._nodes[change.node]
        node.time = change.time
        if change.size is not None and node.content is not None:
            node.content = node.content.resized(change.size)
        if change.data is not None and node.content is not None:
            node.content = node.content.written(change.offset, change.data)
        for name, stands_for in change.names:
            names = self._names(change.node)
            names.pop(name, None)
            if stands_for is not None:
                names[name] = stands_for
        if change.also is not None:
            self.do(change.also)

    def add_blank(self, other: "Files") -> None:
        """Add, without a name, what ``other`` has more, as it was when it was made."""
        for number, node in other._nodes.items():
            if number not in self._nodes:
                content = None if node.content is None else EMPTY
                self._nodes[number] = _Node(content, None if node.names is None else {}, node.target, node.time)

    def node_of(self, path: str) -> int | None:
        """The number of what ``path`` stands for, links followed; None: there is nothing."""
        if not path:
            return _TOP
        try:
            folder, name = self._place(path, is_followed=True)
            return self._names(folder).get(name)
        except KeyError:
            return None

    def path_of(self, node: int) -> str | None:
        """What a file or folder is called; None: it has no name any more."""
        for path, number in self._paths("", _TOP):
            if number == node:
                return path
        return None

    def _paths(self, prefix: str, folder: int) -> Iterator[tuple[str, int]]:
        for name, number in (self._nodes[folder].names or {}).items():
            yield prefix + name, number
            yield from self._paths(f"{prefix}{name}/", number)

    def content_of(self, path: str) -> Content | None:
        """The bytes of a file; None: there is none."""
        number = self.node_of(path)
        return None if number is None else self._nodes[number].content

    # --- operations ---

    def _open(self, operation: Operation) -> list[Change]:
        folder, name = self._place(operation.path, is_followed=True)
        number = self._names(folder).get(name)
        changes = []
        if number is None:
            if not operation.is_new:
                raise KeyError(operation.path)
            number = self._new(_Node(content=EMPTY, time=operation.time))
            changes.append(self._named(operation, folder, (name, number)))
        elif operation.is_cut and (self._nodes[number].content or EMPTY).size:
            changes.append(Change(node=number, size=0, time=operation.time, by=operation))
        return changes

    def _write(self, operation: Operation) -> list[Change]:
        number = self._there(operation.path)
        content = self._nodes[number].content
        if content is None:
            raise KeyError(operation.path)
        offset = content.size if operation.offset is None else operation.offset
        return [Change(node=number, data=operation.data, offset=offset, time=operation.time, by=operation)]

    def _resize(self, operation: Operation) -> list[Change]:
        number = self._there(operation.path)
        content = self._nodes[number].content
        if content is None:
            raise KeyError(operation.path)
        if content.size == operation.size or (operation.only_grows and content.size > operation.size):
            return []
        return [Change(node=number, size=operation.size, time=operation.time, by=operation)]

    def _make_folder(self, operation: Operation) -> list[Change]:
        folder, name = self._place(operation.path)
        if name in self._names(folder):
            raise KeyError(operation.path)
        return [self._named(operation, folder, (name, self._new(_Node(names={}, time=operation.time))))]

    def _symlink(self, operation: Operation) -> list[Change]:
        folder, name = self._place(operation.path)
        node = self._new(_Node(target=operation.other, time=operation.time))
        return [self._named(operation, folder, (name, node))]

    def _link(self, operation: Operation) -> list[Change]:
        folder, name = self._place(operation.other)
        return [self._named(operation, folder, (name, self._there(operation.path)))]

    def _remove(self, operation: Operation) -> list[Change]:
        folder, name = self._place(operation.path)
        number = self._names(folder)[name]
        if operation.call == "rmdir" and self._nodes[number].names:
            raise KeyError(operation.path)
        return [self._named(operation, folder, (name, None))]

    def _rename(self, operation: Operation) -> list[Change]:
        folder, name = self._place(operation.path)
        new_folder, new_name = self._place(operation.other)
        number = self._names(folder)[name]
        if folder == new_folder:
            return [self._named(operation, folder, (name, None), (new_name, number))]
        change = self._named(operation, new_folder, (new_name, number))
        return [replace(change, also=self._named(operation, folder, (name, None)))]

    def _sync(self, operation: Operation) -> list[Change]:
        return []

    _sync_all = _sync

    # --- names ---

    def _new(self, node: _Node) -> int:
        number, self._next = self._next, self._next + 1
        self._nodes[number] = node
        return number

    def _named(self, operation: Operation, folder: int, *names: tuple[str, int | None]) -> Change:
        return Change(node=folder, names=names, time=operation.time, by=operation)

    def _names(self, folder: int) -> dict[str, int]:
        names = self._nodes[folder].names
        if names is None:
            raise KeyError(folder)
        return names

    def _place(self, path: str, *, is_followed: bool = False) -> tuple[int, str]:
        """The folder that a path is in, links in it followed, and its name there; at the end of links, if asked."""
        way, left, hops = [_ELSEWHERE if path.startswith("/") else _TOP], path.split("/"), 0
        while True:
            part = left.pop(0)
            if part == ".." and len(way) > 1:
                way.pop()
            number = self._names(way[-1]).get(part)
            target = None if number is None else self._nodes[number].target
            if target is not None and (left or is_followed):
                hops += 1
                if target.startswith("/") or hops > _DEEPEST_LINKS:
                    raise KeyError(path)
                left = [*target.split("/"), *left]
            elif not left:
                return way[-1], part
            elif part not in ("", ".", ".."):
                if number is None and way[0] == _ELSEWHERE:
                    # Folders that were there before.
                    number = self._names(way[-1])[part] = self._new(_Node(names={}))
                if number is None:
                    raise KeyError(path)
                way.append(number)

    def _there(self, path: str) -> int:
        number = self.node_of(path)
        if number is None:
            raise KeyError(path)
        return number


def tree_with(base: Files, changes: Sequence[Change], after: Files, *, lost: Collection[int]) -> Tree:
    """What is there when some changes have not reached the disk.

    Args:
        base: What was there before the changes.
        changes: In the order in which they were made.
        after: What processes see after them.
        lost: Which ones, by their place in ``changes``.
    """
    disk = base.copy()
    disk.add_blank(after)
    for index, change in enumerate(changes):
        if index not in lost:
            disk.do(change)
    return disk.tree()
