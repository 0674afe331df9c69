"""The bytes of a file, as pieces of what was written: large files are not copied with each write. Torch-free."""

import hashlib
from collections.abc import Iterator
from typing import BinaryIO

__all__ = ["EMPTY", "Content"]

_HASHED_BYTES = 4 << 20

_Piece = tuple[bytes, int, int]
"""Of these bytes those from here to before there."""


class Content:
    """What a file holds; never changed.

    Args:
        pieces: One after the other.
    """

    __slots__ = ("_key", "_pieces", "size")

    def __init__(self, pieces: tuple[_Piece, ...] = ()) -> None:
        self._pieces = pieces
        self.size = sum(stop - start for _, start, stop in pieces)
        self._key: str | None = None

    def written(self, offset: int, data: bytes) -> "Content":
        """With ``data`` at ``offset``; zeros stand between the end and it."""
        head = self.resized(offset)._pieces if offset > self.size else tuple(self._cut(0, offset))
        return Content((*head, (data, 0, len(data)), *self._cut(offset + len(data), self.size)))

    def resized(self, size: int) -> "Content":
        """Cut, or longer by zeros."""
        if size <= self.size:
            return Content(tuple(self._cut(0, size)))
        return Content((*self._pieces, (bytes(size - self.size), 0, size - self.size)))

    def part(self, begin: int, end: int) -> bytes:
        """Its bytes from ``begin`` to before ``end``."""
        return b"".join(data[start:stop] for data, start, stop in self._cut(begin, end))

    def write_to(self, file: BinaryIO) -> None:
        """Write it all."""
        for data, start, stop in self._pieces:
            file.write(memoryview(data)[start:stop])

    def equals(self, file: BinaryIO) -> bool:
        """Whether ``file`` goes on with these bytes."""
        return all(file.read(stop - start) == memoryview(data)[start:stop] for data, start, stop in self._pieces)

    @property
    def key(self) -> str:
        """Two with the same key have the same bytes. Large ones that come from other writes have other keys."""
        if self._key is None:
            digest = hashlib.blake2b(digest_size=16)
            for data, start, stop in self._pieces:
                # As long as a piece is held, its address stands for nothing else.
                is_hashed = self.size <= _HASHED_BYTES
                digest.update(memoryview(data)[start:stop] if is_hashed else f"{id(data)} {start} {stop};".encode())
            self._key = f"{self.size}/{digest.hexdigest()}"
        return self._key

    def _cut(self, begin: int, end: int) -> Iterator[_Piece]:
        at = 0
        for data, start, stop in self._pieces:
            first, last = max(begin - at, 0), min(end - at, stop - start)
            if first < last:
                yield data, start + first, start + last
            at += stop - start


EMPTY = Content()
