"""What a disk may show after the power was cut at any point of a record of system calls.

The model is that of ALICE (Pillai et al., All File Systems Are Not Created Equal, OSDI 2014), at its strictest: a call
that has returned has changed what other processes see, and nothing else. Until ``fsync`` of the file (for its bytes and
its length) or of the folder (for the names in it) each change may or may not have reached the disk, on its own and in
any order:

====================================  ==================================================================
a write, past the page cache or not   is lost; its first half is there; its range is there, all zeros
a reserved length                     is lost
a name made, removed or renamed       is lost; a rename never happens by halves
====================================  ==================================================================

Real file systems keep more: ext4 writes the name of a file that is synced, and names in the order they were made in.
Nothing here relies on that. Left out are bytes that decay, and disks that lie about ``fsync``.
"""

import hashlib
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.faulty_calls import Operation

__all__ = ["Disk", "State", "states_of"]

_KEPT, _LOST, _HALF, _ZEROS = "kept", "lost", "half", "zeros"
_SUBSETS_OF = 7


@dataclass(frozen=True, slots=True)
class _Change:
    """A change of one file or folder, which reaches the disk or does not."""

    node: int
    names: tuple[tuple[str, int | None, int | None], ...] = ()
    """Of a folder: name, what it stood for until then, and from then on."""
    offset: int = 0
    data: bytes | None = None
    """Of a write."""
    length: int = 0
    """Of a reservation."""


@dataclass(frozen=True, slots=True)
class State:
    """What lies on the disk when the machine comes up again."""

    folders: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    """Path, and what identifies the bytes."""


class Disk:
    """A folder tree, and what is done to it, one operation after the other. Paths are relative to its top.

    Args:
        root: What is in it now is durable.
        pool: A folder to keep the bytes of files in, under what identifies them.
    """

    def __init__(self, root: Path, pool: Path) -> None:
        self._pool = pool
        self._numbers = itertools.count()
        self._base: dict[int, bytes] = {}
        self._durable: dict[int, dict[str, int]] = {}
        self._top = self._add(root)
        self._names = {node: dict(names) for node, names in self._durable.items()}
        self._handles: dict[str, int] = {}
        self._changes: list[_Change] = []
        self._pending: set[int] = set()
        self._known: dict[tuple[int, tuple[str, ...]], str] = {}

    def _add(self, path: Path) -> int:
        node = next(self._numbers)
        if path.is_dir():
            self._durable[node] = {child.name: self._add(child) for child in sorted(path.iterdir())}
        else:
            self._base[node] = path.read_bytes()
        return node

    def apply(self, operation: Operation) -> None:
        """Do one operation, as other processes see it."""
        getattr(self, f"_do_{operation.kind}")(operation)

    def _do_mark(self, operation: Operation) -> None:
        pass

    def _do_open(self, operation: Operation) -> None:
        folder, name = self._place(operation.path)
        node = self._names[folder].get(name) if name else folder
        if node is None:
            assert operation.flags & os.O_CREAT, operation
            node = next(self._numbers)
            self._rename(folder, {name: node})
        assert not operation.flags & os.O_TRUNC, "the model knows no shortening"
        self._handles[operation.handle] = node

    def _do_mkdir(self, operation: Operation) -> None:
        folder, name = self._place(operation.path)
        node = next(self._numbers)
        self._names[node] = {}
        self._rename(folder, {name: node})

    def _do_rename(self, operation: Operation) -> None:
        folder, name = self._place(operation.path)
        new_folder, new_name = self._place(operation.new_path)
        assert folder == new_folder, "the model knows no renames from folder to folder"
        self._rename(folder, {name: None, new_name: self._names[folder][name]})

    def _do_unlink(self, operation: Operation) -> None:
        folder, name = self._place(operation.path)
        assert name in self._names[folder], operation
        self._rename(folder, {name: None})

    _do_rmdir = _do_unlink

    def _do_write(self, operation: Operation) -> None:
        self._change(_Change(self._handles[operation.handle], offset=operation.offset, data=operation.data))

    def _do_allocate(self, operation: Operation) -> None:
        self._change(_Change(self._handles[operation.handle], length=operation.length))

    def _do_fsync(self, operation: Operation) -> None:
        node = self._handles[operation.handle]
        self._pending = {index for index in self._pending if self._changes[index].node != node}

    def _rename(self, folder: int, new: dict[str, int | None]) -> None:
        names = self._names[folder]
        change = _Change(folder, names=tuple((name, names.get(name), node) for name, node in new.items()))
        self._change(change)
        _apply_names(names, change)

    def _change(self, change: _Change) -> None:
        self._pending.add(len(self._changes))
        self._changes.append(change)

    def _place(self, path: str) -> tuple[int, str]:
        """The folder that a path is in, and its name there; for the top itself no name."""
        parts = Path(path).parts
        node = self._top
        for part in parts[:-1]:
            node = self._names[node][part]
        return node, parts[-1] if parts else ""

    def now(self) -> State:
        """What processes see."""
        return self._state({})

    def states(self) -> set[State]:
        """What may be there if the power is cut now.

        That is: all that is not durable is there, or nothing of it, or only names, or only what is in files; each single
        change is lost alone, or is all there is; each write is cut to its half, or left as zeros, while all else, or
        nothing else, or every name is there. Where no more than 7 changes are not durable: each subset of them.
        """
        return {self._state(fates) for fates in self._fates()}

    def _fates(self) -> Iterator[dict[int, str]]:
        pending = sorted(self._pending)
        all_kept, all_lost = dict.fromkeys(pending, _KEPT), dict.fromkeys(pending, _LOST)
        names = {index: _KEPT for index in pending if self._changes[index].names}
        yield from (all_kept, all_lost, {**all_lost, **names}, {**all_kept, **dict.fromkeys(names, _LOST)})
        for index in pending:
            yield {**all_kept, index: _LOST}
            yield {**all_lost, index: _KEPT}
            if self._changes[index].data is not None:
                for fate, rest in itertools.product((_HALF, _ZEROS), (all_kept, all_lost, {**all_lost, **names})):
                    yield {**rest, index: fate}
        if len(pending) <= _SUBSETS_OF:
            for chosen in itertools.product((_KEPT, _LOST), repeat=len(pending)):
                yield dict(zip(pending, chosen, strict=True))

    def _state(self, fates: dict[int, str]) -> State:
        names = {node: dict(found) for node, found in self._durable.items()}
        own: dict[int, list[str]] = {}
        for index, change in enumerate(self._changes):
            fate = fates.get(index, _KEPT)
            if not change.names:
                own.setdefault(change.node, []).append(fate)
            elif fate == _KEPT:
                _apply_names(names.setdefault(change.node, {}), change)
        folders: list[str] = []
        files: list[tuple[str, str]] = []
        self._walk(self._top, "", names, own, folders, files)
        return State(tuple(sorted(folders)), tuple(sorted(files)))

    def _walk(
        self,
        node: int,
        prefix: str,
        names: dict[int, dict[str, int]],
        own: dict[int, list[str]],
        folders: list[str],
        files: list[tuple[str, str]],
    ) -> None:
        for name, child in names.get(node, {}).items():
            path = f"{prefix}{name}"
            if child in self._names:
                folders.append(path)
                self._walk(child, f"{path}/", names, own, folders, files)
            else:
                files.append((path, self._content(child, tuple(own.get(child, ())))))

    def _content(self, node: int, fates: tuple[str, ...]) -> str:
        """Put the bytes of a file into the pool; return what identifies them."""
        known = self._known.get((node, fates))
        if known is None:
            raw = bytearray(self._base.get(node, b""))
            own = [change for change in self._changes if change.node == node]
            for change, fate in zip(own, fates, strict=True):
                _apply_bytes(raw, change, fate)
            known = self._known[node, fates] = hashlib.sha256(raw).hexdigest()
            file = self._pool / known
            if not file.exists():
                file.write_bytes(raw)
        return known

    def show(self, state: State, folder: Path) -> None:
        """Make ``folder``, which does not exist, look like a state. Its files are links into the pool."""
        folder.mkdir()
        for path in state.folders:
            (folder / path).mkdir()
        for path, content in state.files:
            os.link(self._pool / content, folder / path)


def _apply_names(names: dict[str, int], change: _Change) -> None:
    for name, old, new in change.names:
        if new is not None:
            names[name] = new
        elif names.get(name) == old:
            # If not, what is removed here never got its name.
            names.pop(name, None)


def _apply_bytes(raw: bytearray, change: _Change, fate: str) -> None:
    if fate == _LOST:
        return
    if change.data is None:
        raw.extend(bytes(max(0, change.length - len(raw))))
        return
    data = change.data
    if fate == _HALF:
        data = data[: len(data) // 2]
    elif fate == _ZEROS:
        data = bytes(len(data))
    raw.extend(bytes(max(0, change.offset - len(raw))))
    raw[change.offset : change.offset + len(data)] = data


def states_of(
    disk: Disk, record: Sequence[Operation], *, first: int = 0
) -> Iterator[tuple[int, tuple[Any, ...], State]]:
    """Replay a record; yield every state that a cut may leave, each once for what the world had been told by then.

    Args:
        disk: As it was when the record began.
        record: All that was done to it.
        first: Cuts before that many operations are not tried.

    Yields:
        How many operations were done, the marks among them, and the state.
    """
    seen: set[tuple[tuple[str, ...], State]] = set()
    marks: tuple[str, ...] = ()
    for count, operation in enumerate([None, *record]):
        if operation is not None:
            disk.apply(operation)
            if operation.kind == "mark":
                marks = (*marks, operation.path)
        if count < first:
            continue
        for state in sorted(disk.states() - {known for told, known in seen if told == marks}, key=repr):
            seen.add((marks, state))
            yield count, marks, state
