"""The seam to storage: where the bytes of a checkpoint go. Local file systems, and any fsspec URL.

Everything that touches storage goes through :class:`Backend`, so tests put a failing, slow or counting one in its
place: every function that takes a ``url`` takes a :class:`Location` too, which carries the backend.

Must not know what is in the files, nor what they are called.
"""

import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

__all__ = ["Backend", "FsspecBackend", "LocalBackend", "Location", "Url", "locate"]

_URL = re.compile(r"[a-z][a-z0-9+.-]*(::|://)")


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

    def write_file(self, path: str, blocks: Iterable[memoryview]) -> None:
        """Write a file in one go; on return its bytes, and its name in its folder, are durable.

        Each block is used up before the next is asked for. After an error part of the file may lie there.
        """

    def read_into(self, path: str, offset: int, target: memoryview) -> int:
        """Fill ``target`` from ``offset`` on; return how many bytes there were, fewer only at the end of the file."""

    def rename_folder(self, old: str, new: str) -> None:
        """Give a folder another name under the same parent, durably. ``new`` must not exist, or be empty."""

    def remove(self, path: str) -> None:
        """Delete a file, or a folder with all that is in it. What is not there is no error."""

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


def locate(url: Url) -> Location:
    """Return where ``url`` points. Local paths are made absolute now: the working folder may change before a save."""
    if isinstance(url, Location):
        return url
    text = os.fspath(url)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    elif _URL.match(text):
        return _locate_remote(text)
    return Location(LocalBackend(), str(Path(text).absolute()))


def _locate_remote(url: str) -> Location:
    # Imported here: most runs write to local paths, and a launcher wants to start fast.
    from fsspec.core import url_to_fs

    file_system, path = url_to_fs(url)
    return Location(FsspecBackend(file_system), path)


class LocalBackend:
    """Files of the operating system, through the page cache."""

    renames_folders = True

    def make_folder(self, folder: str) -> None:
        """See :class:`Backend`."""
        path = Path(folder)
        if path.is_dir():
            return
        self.make_folder(str(path.parent))
        # Several ranks may make it at once.
        path.mkdir(exist_ok=True)
        _sync(str(path.parent))

    def list_names(self, folder: str) -> list[str]:
        """See :class:`Backend`."""
        try:
            return sorted(path.name for path in Path(folder).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, path: str) -> int:
        """See :class:`Backend`."""
        return Path(path).stat().st_size

    def write_file(self, path: str, blocks: Iterable[memoryview]) -> None:
        """See :class:`Backend`. The file must not exist."""
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for block in blocks:
                rest = block
                while rest.nbytes:
                    rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        _sync(str(Path(path).parent))

    def read_into(self, path: str, offset: int, target: memoryview) -> int:
        """See :class:`Backend`."""
        with Path(path).open("rb", buffering=0) as file:
            file.seek(offset)
            done = 0
            while done < target.nbytes:
                count = file.readinto(target[done:])
                if not count:
                    break
                done += count
            return done

    def rename_folder(self, old: str, new: str) -> None:
        """See :class:`Backend`."""
        Path(old).rename(new)
        _sync(str(Path(new).parent))

    def remove(self, path: str) -> None:
        """See :class:`Backend`."""
        try:
            if Path(path).is_dir():
                shutil.rmtree(path)
            else:
                Path(path).unlink()
        except FileNotFoundError:
            return
        _sync(str(Path(path).parent))

    def address(self, path: str) -> str:
        """See :class:`Backend`."""
        return path


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FsspecBackend:
    """Anything that fsspec can open, taken as an object store: a file appears whole or not at all, nothing is renamed.

    Args:
        file_system: An ``fsspec.AbstractFileSystem``; must pickle where a save runs in another process.
    """

    renames_folders = False

    def __init__(self, file_system: Any) -> None:
        self._file_system = file_system

    def make_folder(self, folder: str) -> None:
        """See :class:`Backend`."""
        self._file_system.makedirs(folder, exist_ok=True)

    def list_names(self, folder: str) -> list[str]:
        """See :class:`Backend`."""
        self._file_system.invalidate_cache()
        try:
            found = self._file_system.ls(folder, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Some object stores list the folder itself among what is in it.
        names = {str(path).rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != folder.rstrip("/")}
        return sorted(names)

    def size(self, path: str) -> int:
        """See :class:`Backend`."""
        self._file_system.invalidate_cache()
        return int(self._file_system.size(path))

    def write_file(self, path: str, blocks: Iterable[memoryview]) -> None:
        """See :class:`Backend`. Replaces a file of that name."""
        with self._file_system.open(path, "wb") as file:
            for block in blocks:
                file.write(block)

    def read_into(self, path: str, offset: int, target: memoryview) -> int:
        """See :class:`Backend`."""
        found = self._file_system.cat_file(path, start=offset, end=offset + target.nbytes)
        target[: len(found)] = found
        return len(found)

    def rename_folder(self, old: str, new: str) -> None:
        """Never called: ``renames_folders`` is False."""
        raise OSError(f"{self.address(old)} cannot be renamed to {self.address(new)}: an object store has no folders.")

    def remove(self, path: str) -> None:
        """See :class:`Backend`."""
        try:
            self._file_system.rm(path, recursive=True)
        except FileNotFoundError:
            return

    def address(self, path: str) -> str:
        """See :class:`Backend`."""
        return str(self._file_system.unstrip_protocol(path))
