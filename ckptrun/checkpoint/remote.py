"""Anything that fsspec can open, taken as an object store: a file appears whole or not at all, nothing is renamed."""

from collections.abc import Callable, Sequence
from typing import Any

from ckptrun.checkpoint.owner import is_alive

__all__ = ["FsspecBackend"]

_BLOCK_BYTES = 16 * 2**20
_READS_AT_ONCE = 8


class FsspecBackend:
    """See :class:`~ckptrun.checkpoint.backend.Backend`.

    Args:
        file_system: An ``fsspec.AbstractFileSystem``; must pickle where a save runs in another process.
    """

    renames_folders = False

    def __init__(self, file_system: Any) -> None:
        self._file_system = file_system

    def make_folder(self, folder: str) -> None:
        """See ``Backend``."""
        self._file_system.makedirs(folder, exist_ok=True)

    def list_names(self, folder: str) -> list[str]:
        """See ``Backend``."""
        self._file_system.invalidate_cache()
        try:
            found = self._file_system.ls(folder, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Some object stores list the folder itself among what is in it.
        names = {str(path).rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != folder.rstrip("/")}
        return sorted(names)

    def size(self, path: str) -> int:
        """See ``Backend``."""
        self._file_system.invalidate_cache()
        return int(self._file_system.size(path))

    def create(self, path: str, length: int) -> "RemoteFileWriter":
        """See ``Backend``. Replaces a file of that name."""
        return RemoteFileWriter(self._file_system.open(path, "wb"))

    def open(self, path: str) -> "RemoteFileReader":
        """See ``Backend``."""
        self._file_system.info(path)
        return RemoteFileReader(self._file_system, path)

    def rename_folder(self, old: str, new: str) -> None:
        """Never called: ``renames_folders`` is False."""
        raise OSError(f"{self.address(old)} cannot be renamed to {self.address(new)}: an object store has no folders.")

    def remove(self, path: str) -> None:
        """See ``Backend``."""
        try:
            self._file_system.rm(path, recursive=True)
        except FileNotFoundError:
            return

    def hold(self, path: str, note: str) -> Callable[[], None]:
        """See ``Backend``. Nothing takes it back when this process dies; whoever looks judges by the note."""
        self._file_system.pipe_file(path, note.encode())
        return lambda: self.remove(path)

    def holder(self, path: str) -> str | None:
        """See ``Backend``."""
        self._file_system.invalidate_cache()
        try:
            note = self._file_system.cat_file(path).decode()
        except FileNotFoundError:
            return None
        return note if is_alive(note) else None

    def address(self, path: str) -> str:
        """See ``Backend``."""
        return str(self._file_system.unstrip_protocol(path))


class RemoteFileWriter:
    """See :class:`~ckptrun.checkpoint.backend.FileWriter`."""

    block_bytes = _BLOCK_BYTES
    writes_at_once = 1

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, offset: int, block: memoryview) -> None:
        """See ``FileWriter``."""
        self._file.write(bytes(block))

    def finish(self) -> None:
        """See ``FileWriter``."""
        self._file.close()

    def abort(self) -> None:
        """See ``FileWriter``."""
        self._file.discard()


class RemoteFileReader:
    """See :class:`~ckptrun.checkpoint.backend.FileReader`."""

    reads_at_once = _READS_AT_ONCE

    def __init__(self, file_system: Any, path: str) -> None:
        self._file_system = file_system
        self._path = path

    def read(self, offset: int, targets: Sequence[memoryview]) -> int:
        """See ``FileReader``."""
        length = sum(target.nbytes for target in targets)
        found = memoryview(self._file_system.cat_file(self._path, start=offset, end=offset + length)) if length else b""
        position = 0
        for target in targets:
            part = found[position : position + target.nbytes]
            target[: len(part)] = part
            position += len(part)
        return position

    def will_need(self, offset: int, length: int) -> None:
        """See ``FileReader``."""

    def close(self) -> None:
        """See ``FileReader``."""
