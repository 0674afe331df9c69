"""The seam to storage: what a backend is, and a path on one.

Everything that touches storage goes through :class:`Backend`, so tests put a failing, slow or counting one in its
place: every function that takes a ``url`` takes a :class:`Location` too, which carries the backend.

Must not know what is in the files, nor what they are called.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Backend", "FileReader", "FileWriter", "Location", "Url", "read_file", "write_file"]


class FileWriter(Protocol):
    """A file that is being written. One of ``finish()`` and ``abort()`` ends it, when no ``write()`` is running."""

    block_bytes: int
    """Every block starts at a multiple of this, and all but the last are so long."""
    writes_at_once: int
    """How many threads may be in ``write()``. With 1 the blocks must come in order."""

    def write(self, offset: int, block: memoryview) -> None:
        """Write a block. Fastest from page-aligned memory. What it was given may be changed after it returns."""

    def finish(self) -> None:
        """Return once the bytes of the file, and its name in its folder, are durable. Where it fails, abort nothing."""

    def abort(self) -> None:
        """Give up; what was written is removed."""


class FileReader(Protocol):
    """A file that is being read, by several threads at once."""

    reads_at_once: int
    """How many threads make sense."""
    block_bytes: int
    """How many bytes are best asked for at once."""

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """Fill buffers one after the other from ``offset`` on; return how many bytes there were.

        Fewer than asked for only at the end of the file.
        """

    def will_need(self, offset: int, length: int) -> None:
        """Take note that these bytes are read soon."""

    def close(self) -> None:
        """Give it back."""


class Backend(Protocol):
    """A place that holds files in folders. Called by any rank, in any thread, and pickled to other processes.

    What it raises is ``OSError``; ``FileNotFoundError`` for what is not there.
    """

    renames_folders: bool
    """Whether ``rename_folder`` exists and happens at once or not at all."""

    def make_folder(self, folder: str) -> None:
        """Make ``folder`` and its parents, durably. One that exists is left as it is."""

    def list_names(self, folder: str) -> list[str]:
        """Return the sorted names of what lies in ``folder``; nothing when it does not exist."""

    def size(self, path: str) -> int:
        """Return the bytes of a file."""

    def create(self, path: str, length: int) -> FileWriter:
        """Start a file of ``length`` bytes; ``OSError`` ENOSPC where it is known that there is no room for it."""

    def open(self, path: str) -> FileReader:
        """Start to read a file."""

    def rename_folder(self, old: str, new: str) -> None:
        """Give a folder, or a file, another path, durably. ``new`` must not exist, or be an empty folder."""

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it. What is not there is no error."""

    def hold(self, path: str, note: str) -> Callable[[], None]:
        """Make a lock file with ``note`` in it, held until this process calls the result, which removes it, or dies."""

    def holder(self, path: str) -> str | None:
        """Return the note in a lock file whose owner may still live; None when it is dead, or there is no file."""

    def address(self, path: str) -> str:
        """Return ``path`` as a user would write it."""


@dataclass(frozen=True, slots=True)
class Location:
    """A path on a backend."""

    backend: Backend
    path: str

    def child(self, name: str) -> "Location":
        """Return what is called ``name`` in this folder."""
        return Location(self.backend, f"{self.path.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        """The last element of the path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> "Location":
        """The folder that this is in."""
        return Location(self.backend, self.path.rstrip("/").rpartition("/")[0] or "/")

    def sibling(self, name: str) -> "Location":
        """Return what is called ``name`` in the same folder."""
        return self.parent.child(name)

    def __str__(self) -> str:
        return self.backend.address(self.path)


Url = str | os.PathLike[str] | Location
"""A local path, an fsspec URL, or a path on a backend of one's own."""


def write_file(file: Location, raw: bytes) -> None:
    """Write a small file in one go, durably."""
    writer = file.backend.create(file.path, len(raw))
    try:
        for offset in range(0, len(raw), writer.block_bytes):
            writer.write(offset, memoryview(raw)[offset : offset + writer.block_bytes])
    except BaseException:
        writer.abort()
        raise
    writer.finish()


def read_file(file: Location, length: int) -> bytes:
    """Return the first ``length`` bytes of a file; fewer only where it ends."""
    raw = bytearray(length)
    with closing(file.backend.open(file.path)) as reader:
        count = reader.read(0, [memoryview(raw)])
    return bytes(memoryview(raw)[:count])
