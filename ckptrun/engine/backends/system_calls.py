"""Every system call by which a save or load touches a local file system, one method each.

The lowest seam: tests put their own in its place, to count calls, to kill the process between two of them, to let one
fail, or to record them and replay what is left after a power cut. So nothing else in the engine may touch a local file
of a checkpoint. Planned faults strike one level higher, in place of the backend. No method does anything beside its
call.
"""

import ctypes
import errno
import fcntl
import functools
import os
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["SystemCalls"]


class SystemCalls:
    """The real ones. Called in any thread; pickled to saving processes. What fails raises ``OSError``."""

    def open(self, path: str, flags: int) -> int:
        """Return a descriptor of ``path``, a file or a folder."""
        return os.open(path, flags | os.O_CLOEXEC, 0o666)

    def set_direct(self, descriptor: int, direct: bool) -> None:
        """Write past the page cache from now on, or through it again. EINVAL where the file system cannot."""
        flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        fcntl.fcntl(descriptor, fcntl.F_SETFL, flags | os.O_DIRECT if direct else flags & ~os.O_DIRECT)

    def allocate(self, descriptor: int, length: int) -> None:
        """Give a file its length and the space for it. EOPNOTSUPP where the file system cannot."""
        # Not os.posix_fallocate(): where the file system cannot, the C library writes to every block instead.
        if _fallocate()(descriptor, 0, 0, length):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    def free_bytes(self, folder: str) -> int:
        """Return how many bytes this user may still write where ``folder`` lies."""
        status = os.statvfs(folder)
        return status.f_bavail * status.f_frsize

    def pwrite(self, descriptor: int, block: memoryview, offset: int) -> int:
        """Write bytes at ``offset``; return how many."""
        return os.pwrite(descriptor, block, offset)

    def preadv(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill buffers one after the other from ``offset`` on; return how many bytes there were."""
        return os.preadv(descriptor, buffers, offset)

    def will_need(self, descriptor: int, offset: int, length: int) -> None:
        """Tell the kernel that these bytes are going to be read."""
        os.posix_fadvise(descriptor, offset, length, os.POSIX_FADV_WILLNEED)

    def fsync(self, descriptor: int) -> None:
        """Make the content of a file, or the names in a folder, durable."""
        os.fsync(descriptor)

    def lock(self, descriptor: int) -> None:
        """Lock a file until this process closes it or dies. BlockingIOError when another process has the lock."""
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self, descriptor: int) -> None:
        """Give a descriptor back."""
        os.close(descriptor)

    def length(self, path: str) -> int:
        """Return the bytes of a regular file. EINVAL for anything else: opening a pipe would wait for ever."""
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "It is no regular file", path)
        return status.st_size

    def is_same(self, descriptor: int, path: str) -> bool:
        """Whether ``path`` still is the file that was opened."""
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116  # beside fstat()
        except FileNotFoundError:
            return False

    def is_folder(self, path: str) -> bool:
        """Whether ``path`` is a folder, or a link to one."""
        return Path(path).is_dir()

    def is_link(self, path: str) -> bool:
        """Whether ``path`` is a symbolic link."""
        return Path(path).is_symlink()

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, in any order."""
        return os.listdir(folder)  # noqa: PTH208  # names alone

    def mkdir(self, folder: str) -> None:
        """Make one folder."""
        Path(folder).mkdir()

    def rename(self, old: str, new: str) -> None:
        """Give a file or folder another name."""
        Path(old).rename(new)

    def unlink(self, path: str) -> None:
        """Delete a file."""
        Path(path).unlink()

    def rmdir(self, folder: str) -> None:
        """Delete an empty folder."""
        Path(folder).rmdir()


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    function = getattr(ctypes.CDLL(None, use_errno=True), "fallocate64", None)
    if function is None:
        return _no_fallocate
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function  # type: ignore[no-any-return]


def _no_fallocate(descriptor: int, mode: int, offset: int, length: int) -> int:
    ctypes.set_errno(errno.EOPNOTSUPP)
    return -1
