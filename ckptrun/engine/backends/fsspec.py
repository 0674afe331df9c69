"""Anything that fsspec can open, taken as an object store: a file appears whole or not at all, nothing is renamed.

What is here works with every fsspec file system, as well as that one does: it is tried again as often as fsspec tries,
and a file is written in order. S3 has a backend of its own.
"""

import contextlib
import errno
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from fsspec.spec import AbstractBufferedFile

from ckptrun.engine.backends.owner import is_alive
from ckptrun.forks import only_here, this_process

__all__ = ["FsspecBackend", "ProcessFileSystem", "Scatter"]

_BLOCK_BYTES = 16 * 2**20
_READS_AT_ONCE = 8
_READ_BYTES = 8 * 2**20
_PUT_BYTES = 5 * 2**20
"""Up to here a file is held in memory and stored in one go, which is atomic on most stores."""


class ProcessFileSystem:
    """An ``fsspec.AbstractFileSystem`` that is made anew in a forked process.

    The thread in which fsspec talks to the network does not survive a fork, and a connection must not be shared.
    """

    def __init__(self, file_system: Any) -> None:
        self._file_system = file_system
        self._process = this_process()
        _MADE.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return ProcessFileSystem, (self._file_system,)

    def get(self) -> Any:
        """Return the one of this process."""
        if self._process is not this_process():
            make, arguments, *state = self._file_system.__reduce__()
            made = make(*arguments)
            for attributes in state:
                vars(made).update(attributes)
            self._file_system = made
            self._process = this_process()
        return self._file_system

    def keep(self) -> None:
        """In a forked child: leave what is its parent's as it is, for as long as the child lives.

        Collected, or at the end of the child, it would close connections that the parent still uses: both see one
        ``epoll``, and what the child takes out of it the parent is not told of any more.
        """
        _INHERITED.append(self._file_system)
        for finalizer in list(getattr(weakref.finalize, "_registry", ())):
            found = finalizer.peek()
            if found is not None and found[0] is self._file_system:
                finalizer.detach()


_MADE: "weakref.WeakSet[ProcessFileSystem]" = weakref.WeakSet()
_INHERITED: list[Any] = []


def _keep_all() -> None:
    for files in list(_MADE):
        files.keep()


os.register_at_fork(after_in_child=_keep_all)


@contextlib.contextmanager
def _os_errors(address: str) -> Iterator[None]:
    """Turn what the libraries of a store raise into ``OSError``."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        text = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise OSError(errno.EIO, text, address) from error


class FsspecBackend:
    """See :class:`~ckptrun.engine.backends.interface.Backend`.

    Args:
        file_system: An ``fsspec.AbstractFileSystem``; must pickle where a save runs in another process.
    """

    renames_folders = False

    def __init__(self, file_system: Any) -> None:
        self._files = ProcessFileSystem(file_system)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FsspecBackend) and self._files.get() == other._files.get()

    def __hash__(self) -> int:
        return hash(self._files.get())

    @contextlib.contextmanager
    def _fresh(self, path: str) -> Iterator[Any]:
        """The file system, without what it remembers of folders: others write there too."""
        files = self._files.get()
        with _os_errors(self.address(path)):
            files.invalidate_cache()
            yield files

    def make_folder(self, folder: str) -> None:
        """See ``Backend``."""
        with self._fresh(folder) as files:
            files.makedirs(folder, exist_ok=True)

    def list_names(self, folder: str) -> list[str]:
        """See ``Backend``."""
        try:
            with self._fresh(folder) as files:
                found = files.ls(folder, detail=False)
        except (FileNotFoundError, NotADirectoryError):
            return []
        # Some object stores list the folder itself among what is in it.
        names = {str(path).rstrip("/").rpartition("/")[2] for path in found if path.rstrip("/") != folder.rstrip("/")}
        return sorted(names)

    def size(self, path: str) -> int:
        """See ``Backend``."""
        with self._fresh(path) as files:
            return int(files.size(path))

    def create(self, path: str, length: int) -> "RemoteFileWriter":
        """See ``Backend``. Replaces a file of that name."""
        return RemoteFileWriter(self._files.get(), path, length)

    def open(self, path: str) -> "RemoteFileReader":
        """See ``Backend``."""
        return RemoteFileReader(self._files.get(), path, self.size(path))

    def rename_folder(self, old: str, new: str) -> None:
        """Never called: ``renames_folders`` is False."""
        raise OSError(f"{self.address(old)} cannot be renamed to {self.address(new)}: an object store has no folders.")

    def remove(self, path: str) -> None:
        """See ``Backend``."""
        with contextlib.suppress(FileNotFoundError), self._fresh(path) as files:
            files.rm(path, recursive=True)

    def hold(self, path: str, note: str) -> Callable[[], None]:
        """See ``Backend``. Nothing takes it back when this process dies; whoever looks judges by the note."""
        with self._fresh(path) as files:
            files.pipe_file(path, note.encode())

        @only_here
        def release() -> None:
            # May be called while the interpreter shuts down. What stays is a leftover once this process is gone.
            with contextlib.suppress(OSError):
                self.remove(path)

        return release

    def holder(self, path: str) -> str | None:
        """See ``Backend``."""
        try:
            with self._fresh(path) as files:
                note = files.cat_file(path).decode(errors="replace")
        except FileNotFoundError:
            return None
        return note if is_alive(note) else None

    def address(self, path: str) -> str:
        """See ``Backend``."""
        return str(self._files.get().unstrip_protocol(path))


class RemoteFileWriter:
    """See :class:`~ckptrun.engine.backends.interface.FileWriter`."""

    block_bytes = _BLOCK_BYTES
    writes_at_once = 1

    def __init__(self, files: Any, path: str, length: int) -> None:
        self._files = files
        self._path = path
        self._length = length
        self._address = str(files.unstrip_protocol(path))
        self._held: list[bytes] = []
        self._file: Any = None
        if length > _PUT_BYTES:
            with _os_errors(self._address):
                self._file = files.open(path, "wb")

    def write(self, offset: int, block: memoryview) -> None:
        """See ``FileWriter``."""
        if self._file is None:
            self._held.append(bytes(block))
            return
        with _os_errors(self._address):
            self._file.write(bytes(block))

    def finish(self) -> None:
        """See ``FileWriter``."""
        with _os_errors(self._address):
            if self._file is None:
                self._files.pipe_file(self._path, b"".join(self._held))
            else:
                self._file.close()
            self._files.invalidate_cache()
            size = self._files.size(self._path)
        if size != self._length:
            raise OSError(errno.EIO, f"has {size} bytes after {self._length} were written", self._address)

    def abort(self) -> None:
        """See ``FileWriter``."""
        self._held.clear()
        if self._file is None:
            return
        with _os_errors(self._address):
            if isinstance(self._file, AbstractBufferedFile):
                self._file.discard()
                # Or it would be finished, as far as it got, once nothing refers to it.
                self._file.closed = True
            else:
                # It appeared under its name as it was written.
                self._file.close()
                self._files.rm_file(self._path)


class RemoteFileReader:
    """See :class:`~ckptrun.engine.backends.interface.FileReader`."""

    reads_at_once = _READS_AT_ONCE
    block_bytes = _READ_BYTES

    def __init__(self, files: Any, path: str, size: int) -> None:
        self._files = files
        self._path = path
        self._size = size

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """See ``FileReader``."""
        end = min(offset + sum(buffer.nbytes for buffer in buffers), self._size)
        scatter = Scatter(buffers)
        address = str(self._files.unstrip_protocol(self._path))
        while offset + scatter.count < end:
            with _os_errors(address):
                found = self._files.cat_file(self._path, start=offset + scatter.count, end=end)
            if not found:
                text = f"gave no bytes from {offset + scatter.count} on, though it has {self._size}"
                raise OSError(errno.EIO, text, address)
            scatter.put(found)
        return scatter.count

    def will_need(self, offset: int, length: int) -> None:
        """See ``FileReader``."""

    def close(self) -> None:
        """See ``FileReader``."""


class Scatter:
    """Fills buffers, one after the other."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._buffers = [buffer for buffer in buffers if buffer.nbytes]
        self._filled = 0
        self.count = 0
        """How many bytes there are so far."""

    def put(self, found: bytes) -> None:
        """Append bytes, not more than there is room for."""
        rest = memoryview(found)
        self.count += rest.nbytes
        while rest.nbytes:
            buffer = self._buffers[0]
            part = rest[: buffer.nbytes - self._filled]
            buffer[self._filled : self._filled + part.nbytes] = part
            self._filled += part.nbytes
            rest = rest[part.nbytes :]
            if self._filled == buffer.nbytes:
                del self._buffers[0]
                self._filled = 0
