"""Files of a local file system: past the page cache where the file system takes that, through it elsewhere.

Which of the two is decided by trying, file by file; the bytes are the same. Space for a file is reserved before its
first byte.
"""

import contextlib
import errno
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ckptrun.engine.backends.owner import is_alive
from ckptrun.engine.backends.system_calls import SystemCalls
from ckptrun.forks import only_here

__all__ = ["LocalBackend"]

_BLOCK_BYTES = 8 * 2**20
_WRITES_AT_ONCE = 2
_READS_AT_ONCE = 3
_READ_BYTES = 4 * 2**20
_SECTOR_BYTES = 4096
_MAX_BUFFERS = 1024  # IOV_MAX
_NOTE_BYTES = 4096
_LOOKING_SECONDS = 0.01
_CANNOT = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class LocalBackend:
    """See :class:`~ckptrun.engine.backends.interface.Backend`.

    Args:
        calls: What reaches the operating system.
    """

    renames_folders = True

    def __init__(self, calls: SystemCalls | None = None) -> None:
        self.calls = calls if calls is not None else SystemCalls()

    def __eq__(self, other: object) -> bool:
        # Two paths are the same place when they are reached in the same way.
        return type(other) is type(self) and type(other.calls) is type(self.calls)

    def __hash__(self) -> int:
        return hash((type(self), type(self.calls)))

    def make_folder(self, folder: str) -> None:
        """See ``Backend``."""
        if self.calls.is_folder(folder):
            return
        parent = str(Path(folder).parent)
        if not self.calls.is_folder(parent):
            self.make_folder(parent)
        try:
            self.calls.mkdir(folder)
        except FileExistsError:
            # Another rank was quicker. What is in the way and no folder shows when something is put into it.
            return
        self._sync(parent)

    def list_names(self, folder: str) -> list[str]:
        """See ``Backend``."""
        try:
            return sorted(self.calls.names(folder))
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, path: str) -> int:
        """See ``Backend``."""
        return self.calls.length(path)

    def create(self, path: str, length: int) -> "LocalFileWriter":
        """See ``Backend``."""
        return LocalFileWriter(self.calls, path, length)

    def open(self, path: str) -> "LocalFileReader":
        """See ``Backend``."""
        return LocalFileReader(self.calls, path)

    def rename_folder(self, old: str, new: str) -> None:
        """See ``Backend``."""
        self.calls.rename(old, new)
        self._sync(str(Path(new).parent))

    def remove(self, path: str) -> None:
        """See ``Backend``."""
        parent = str(Path(path).parent)
        try:
            if self.calls.is_folder(path):
                # That it may go is told by names beside it, and who gave these may have been killed before this.
                self._sync(parent)
            self._remove(path)
        except FileNotFoundError:
            return
        self._sync(parent)

    def _remove(self, path: str) -> None:
        if self.calls.is_link(path) or not self.calls.is_folder(path):
            self.calls.unlink(path)
            return
        for name in self.calls.names(path):
            self._remove(str(Path(path) / name))
        self.calls.rmdir(path)

    def hold(self, path: str, note: str) -> Callable[[], None]:
        """See ``Backend``."""
        # A save lies beside its lock. Who made that folder may have been killed before its name was durable; where the
        # folder above is not ours to sync, it was not us.
        with contextlib.suppress(OSError):
            self._sync(str(Path(path).parent.parent))
        while True:
            descriptor = self._hold(path, note)
            if descriptor is not None:
                break
        _HELD[descriptor] = self.calls

        @only_here
        def release() -> None:
            _HELD.pop(descriptor, None)
            try:
                # Whoever has removed the folder has removed it, too.
                with contextlib.suppress(FileNotFoundError):
                    self.calls.unlink(path)
            finally:
                self.calls.close(descriptor)

        return release

    def _hold(self, path: str, note: str) -> int | None:
        """Make and lock the file; None when somebody who looked for a dead owner was quicker than the lock."""
        descriptor = self.calls.open(path, os.O_RDWR | os.O_CREAT)
        try:
            self._try_lock(descriptor)
            self.calls.pwrite(descriptor, memoryview(note.encode()), 0)
            if self.calls.is_same(descriptor, path):
                return descriptor
        except BlockingIOError:
            time.sleep(_LOOKING_SECONDS)
        except BaseException:
            self.calls.close(descriptor)
            raise
        self.calls.close(descriptor)
        return None

    def holder(self, path: str) -> str | None:
        """See ``Backend``."""
        try:
            descriptor = self.calls.open(path, os.O_RDWR)
        except FileNotFoundError:
            return None
        try:
            raw = bytearray(_NOTE_BYTES)
            note = raw[: self.calls.preadv(descriptor, [memoryview(raw)], 0)].decode(errors="replace")
            try:
                locks = self._try_lock(descriptor)
            except BlockingIOError:
                return note
            return note if not locks and is_alive(note) else None
        finally:
            self.calls.close(descriptor)

    def _try_lock(self, descriptor: int) -> bool:
        """Lock a file; False where the file system has no locks."""
        try:
            self.calls.lock(descriptor)
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            return False
        return True

    def address(self, path: str) -> str:
        """See ``Backend``."""
        return path

    def _sync(self, folder: str) -> None:
        sync_folder(self.calls, folder)


_HELD: dict[int, SystemCalls] = {}


def _let_go() -> None:
    """In a forked child, which would hold the locks of its parent on when that is gone."""
    for descriptor, calls in _HELD.items():
        with contextlib.suppress(OSError):
            calls.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_let_go)


def sync_folder(calls: SystemCalls, folder: str) -> None:
    """Make the names in ``folder`` durable."""
    descriptor = calls.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        calls.fsync(descriptor)
    finally:
        calls.close(descriptor)


class LocalFileWriter:
    """A :class:`~ckptrun.engine.backends.interface.FileWriter`. Page-aligned blocks go past the page cache."""

    block_bytes = _BLOCK_BYTES
    writes_at_once = _WRITES_AT_ONCE

    def __init__(self, calls: SystemCalls, path: str, length: int) -> None:
        self._calls = calls
        self._path = path
        self._descriptor = calls.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        self._tail: tuple[int, bytes] | None = None
        self._switching = threading.Lock()
        try:
            self._reserve(length)
            # A small file is one or two pages; its way through the cache is shorter.
            self._direct = length >= _BLOCK_BYTES and self._try_direct()
        except BaseException:
            calls.close(self._descriptor)
            raise

    def _reserve(self, length: int) -> None:
        try:
            if length:
                self._calls.allocate(self._descriptor, length)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise OSError(
                    error.errno, f"{error.strerror}: {length:,} bytes cannot be reserved", self._path
                ) from error
            self._require_space(length)

    def _require_space(self, length: int) -> None:
        free = self._calls.free_bytes(str(Path(self._path).parent))
        if free < length:
            raise OSError(
                errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {length:,} bytes are needed, {free:,} free", self._path
            )

    def _try_direct(self) -> bool:
        try:
            self._calls.set_direct(self._descriptor, True)
        except OSError as error:
            if error.errno not in _CANNOT:
                raise
            return False
        return True

    def write(self, offset: int, block: memoryview) -> None:
        """See ``FileWriter``."""
        if not self._direct:
            self._write_all(offset, block)
            return
        whole = block.nbytes // _SECTOR_BYTES * _SECTOR_BYTES
        try:
            self._write_all(offset, block[:whole])
        except OSError as error:
            # Some file systems take the flag and refuse the write.
            if error.errno != errno.EINVAL:
                raise
            self._give_up_direct()
            self._write_all(offset, block)
            return
        if whole < block.nbytes:
            self._tail = offset + whole, bytes(block[whole:])

    def _give_up_direct(self) -> None:
        with self._switching:
            if self._direct:
                self._calls.set_direct(self._descriptor, False)
                self._direct = False

    def _write_all(self, offset: int, rest: memoryview) -> None:
        while rest.nbytes:
            count = self._calls.pwrite(self._descriptor, rest, offset)
            offset += count
            rest = rest[count:]
            if rest.nbytes and self._direct and count % _SECTOR_BYTES:
                # What is left starts where no sector does.
                self._give_up_direct()

    def finish(self) -> None:
        """See ``FileWriter``."""
        try:
            if self._tail is not None:
                self._give_up_direct()
                self._write_all(self._tail[0], memoryview(self._tail[1]))
            self._calls.fsync(self._descriptor)
        finally:
            self._calls.close(self._descriptor)
        sync_folder(self._calls, str(Path(self._path).parent))

    def abort(self) -> None:
        """See ``FileWriter``."""
        self._calls.close(self._descriptor)
        self._calls.unlink(self._path)


class LocalFileReader:
    """See :class:`~ckptrun.engine.backends.interface.FileReader`."""

    reads_at_once = _READS_AT_ONCE
    block_bytes = _READ_BYTES

    def __init__(self, calls: SystemCalls, path: str) -> None:
        self._calls = calls
        self._descriptor = calls.open(path, os.O_RDONLY)

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        """See ``FileReader``."""
        total = 0
        for first in range(0, len(buffers), _MAX_BUFFERS):
            wanted = buffers[first : first + _MAX_BUFFERS]
            count = self._read_all(offset + total, wanted)
            total += count
            if count < sum(buffer.nbytes for buffer in wanted):
                break
        return total

    def _read_all(self, offset: int, buffers: Sequence[memoryview]) -> int:
        total = self._calls.preadv(self._descriptor, buffers, offset)
        if total == sum(buffer.nbytes for buffer in buffers):
            return total
        # Cut short by the end of the file, by a signal, or because the kernel takes no more than 2 GiB at once.
        position = 0
        for buffer in buffers:
            end = position + buffer.nbytes
            while total < end:
                count = self._calls.preadv(self._descriptor, [buffer[total - position :]], offset + total)
                if not count:
                    return total
                total += count
            position = end
        return total

    def will_need(self, offset: int, length: int) -> None:
        """See ``FileReader``."""
        self._calls.will_need(self._descriptor, offset, length)

    def close(self) -> None:
        """See ``FileReader``."""
        self._calls.close(self._descriptor)
