"""Reads ranges of the files of one folder, of any backend. A file that ends too early is damaged, never a short result.

Must not know what is in the files.
"""

import errno
import io
from collections import OrderedDict
from typing import Self

import torch
from torch import Tensor

from ckptrun.engine.backends.interface import FileReader, Location
from ckptrun.engine.tensor_bytes import writable_bytes
from ckptrun.errors import ForeignFileError, InternalError
from ckptrun.text import cut

__all__ = ["Files", "RangeFile"]

_MAX_OPEN = 64
_FAULTS = {
    errno.ENOENT: "is missing",
    errno.ENOTDIR: "is missing",
    errno.EISDIR: "is no regular file",
    errno.EINVAL: "is no regular file",
    errno.EIO: "cannot be read: the storage fails",
}


class Files:
    """The files of a folder, opened when they are first needed. Used by one thread; a context manager."""

    def __init__(self, folder: Location) -> None:
        self._folder = folder
        self._lengths: dict[str, int] = {}
        self._open: OrderedDict[str, FileReader] = OrderedDict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        while self._open:
            self._open.popitem()[1].close()

    def place(self, name: str) -> Location:
        """Return where a file is.

        Raises:
            ForeignFileError: Such a name could point outside the folder.
        """
        if name in ("", ".", "..") or any(character in name for character in "/\\\0"):
            raise ForeignFileError(
                f"{self._folder} names the file {cut(name, 80)}; only files of the folder itself are read.",
                folder=str(self._folder),
            )
        return self._folder.child(name)

    def length(self, name: str) -> int:
        """Return the bytes of a file."""
        if name not in self._lengths:
            place = self.place(name)
            try:
                self._lengths[name] = place.backend.size(place.path)
            except OSError as error:
                raise self._unreadable(place, error) from error
        return self._lengths[name]

    def fill(self, name: str, offset: int, target: memoryview) -> None:
        """Fill ``target`` from byte ``offset`` of a file on."""
        if not target.nbytes:
            return
        place = self.place(name)
        try:
            count = self._reader(name).read(offset, [target])
        except OSError as error:
            raise self._unreadable(place, error) from error
        if count != target.nbytes:
            raise ForeignFileError(
                f"{place} ends after {offset + count} bytes; {offset + target.nbytes} were expected.",
                folder=str(self._folder),
            )

    def bytes(self, name: str, offset: int, length: int) -> bytes:
        """Return a range, which must lie in the file: nothing is allocated for one that does not."""
        raw = bytearray(self._within(name, offset, length))
        self.fill(name, offset, memoryview(raw))
        return bytes(raw)

    def elements(self, name: str, offset: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return ``count`` elements from byte ``offset`` on, flat. The range must lie in the file."""
        self._within(name, offset, count * dtype.itemsize)
        flat = torch.empty(count, dtype=dtype)
        if not count:
            return flat
        memory = writable_bytes(flat)
        if memory is None:
            raise InternalError(f"A fresh tensor of {dtype} has no memory to read into.")
        self.fill(name, offset, memory)
        return flat

    def _within(self, name: str, offset: int, length: int) -> int:
        available = self.length(name)
        if offset < 0 or length < 0 or offset + length > available:
            raise ForeignFileError(
                f"{self.place(name)} has {available} bytes; bytes {offset} to {offset + length} were expected in it.",
                folder=str(self._folder),
            )
        return length

    def _unreadable(self, place: Location, error: OSError) -> Exception:
        """What to raise where a file is not what it should be; the error itself where that says nothing of the file."""
        # Not every file system behind a URL gives the number.
        what = _FAULTS.get(errno.ENOENT if isinstance(error, FileNotFoundError) else error.errno or 0)
        return error if what is None else ForeignFileError(f"{place} {what}.", folder=str(self._folder))

    def _reader(self, name: str) -> FileReader:
        if name not in self._open:
            place = self.place(name)
            self._open[name] = place.backend.open(place.path)
            if len(self._open) > _MAX_OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(name)
        return self._open[name]


class RangeFile(io.RawIOBase):
    """A range of a file as a file of its own, for readers that want one."""

    def __init__(self, files: Files, name: str, offset: int, length: int) -> None:
        self._files = files
        self._name = name
        self._offset = offset
        self._length = length
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move; negative positions are an error, as everywhere."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError(f"seek to {base + offset}")
        self._position = base + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return bytes. Nothing is allocated beyond the range, however much is asked for."""
        left = max(0, self._length - self._position)
        raw = bytearray(left if size is None or size < 0 else min(size, left))
        self.readinto(memoryview(raw))
        return bytes(raw)

    def readinto(self, target: memoryview) -> int:  # type: ignore[override]  # any writable buffer
        """Fill ``target`` as far as the range goes."""
        view = memoryview(target).cast("B")
        count = max(0, min(view.nbytes, self._length - self._position))
        self._files.fill(self._name, self._offset + self._position, view[:count])
        self._position += count
        return count
