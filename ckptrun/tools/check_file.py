"""Checks one shard file against the manifest: its length, its header, that chunks fill it, and every block of them.

Must not import torch, nor print.
"""

import errno
import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import xxhash

from ckptrun.engine.backends.interface import FileReader, Location
from ckptrun.engine.manifest import Chunk, Leaf, ShardFile
from ckptrun.engine.read_files import wrong_blocks
from ckptrun.engine.shard_file import is_header_length
from ckptrun.tools.check_header import check_header
from ckptrun.tools.damage import Damage, DamageKind, merged

__all__ = ["PIECE_BYTES", "Blocks", "FileCheck", "length_of"]

PIECE_BYTES = 4 * 2**20
"""What is read at once: so little that a core still has it in its cache to hash it. More where a block is longer."""

_AHEAD_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of one chunk that lie beside each other."""

    leaf: str
    chunk: Chunk
    first: int
    begin: int
    """In the file."""
    end: int


Piece = tuple[Blocks, ...]


def length_of(piece: Piece) -> int:
    """Return how many bytes a piece has."""
    return piece[-1].end - piece[0].begin if piece else 0


class FileCheck:
    """One shard file, and what was found in it. Pieces are worked on by several threads.

    Args:
        place: The file.
        file: What the manifest says of it.
        chunks: Those that lie in it, with their leaves.
        save_id: That of the manifest.
        advance: Told how many more bytes are done.
    """

    def __init__(
        self,
        place: Location,
        file: ShardFile,
        chunks: Sequence[tuple[Leaf, Chunk]],
        *,
        save_id: str,
        advance: Callable[[int], None],
    ) -> None:
        self._place = place
        self._file = file
        self._chunks = sorted(chunks, key=lambda found: (found[1].begin, found[1].bytes))
        self._save_id = save_id
        self._advance = advance
        self._lock = threading.Lock()
        self._reader: FileReader | None = None
        self._is_tried = False
        self._left = 0
        self._size = 0
        self.damage: list[Damage] = []
        self.unread: list[str] = []
        self.bytes = 0

    def pieces(self) -> Iterator[Piece]:
        """Yield what is read at once, by place. The first, empty, stands for everything that is no data."""
        pieces = [(), *self._pieces()]
        self._left = len(pieces)
        yield from pieces

    def _pieces(self) -> Iterator[Piece]:
        piece: list[Blocks] = []
        for blocks in itertools.chain.from_iterable(itertools.starmap(_blocks_of, self._chunks)):
            if piece and (piece[-1].end != blocks.begin or blocks.end - piece[0].begin > PIECE_BYTES):
                yield tuple(piece)
                piece = []
            piece.append(blocks)
        if piece:
            yield tuple(piece)

    def work(self, piece: Piece, buffer: memoryview) -> None:
        """Check a piece; ``buffer`` is at least as long."""
        try:
            if piece:
                self._check_data(piece, buffer[: length_of(piece)])
            else:
                self._check_places()
                self._check_header()
        finally:
            with self._lock:
                self._left -= 1
                if not self._left and self._reader is not None:
                    self._reader.close()

    def reader(self) -> FileReader | None:
        """Return the file, opened once; None, with the reason noted, where that cannot be."""
        with self._lock:
            if not self._is_tried:
                self._is_tried = True
                self._reader = self._open()
            return self._reader

    def _open(self) -> FileReader | None:
        backend, path, expected = self._place.backend, self._place.path, self._file.bytes
        try:
            size = backend.size(path)
            reader = backend.open(path)
        except (FileNotFoundError, NotADirectoryError):
            lost = f"; {len(self._chunks):,} chunks lay in it" if self._chunks else ""
            self._add(DamageKind.missing, (0, expected), f"{expected:,} bytes", f"no such file{lost}")
            return None
        except OSError as error:
            if error.errno == errno.EINVAL or isinstance(error, IsADirectoryError):
                # A folder, a pipe or a device in its place.
                self._add(DamageKind.missing, (0, expected), f"{expected:,} bytes", "no regular file")
            else:
                self._failed(error, (0, expected))
            return None
        self._size = size
        if size != expected:
            place = min(size, expected), max(size, expected)
            self._add(DamageKind.length, place, f"{expected:,} bytes", f"{size:,} bytes")
        return reader

    def _check_places(self) -> None:
        """A byte that belongs to no chunk has no checksum; one that belongs to two is not what was written."""
        position = self._file.header_bytes
        spans = [(chunk.begin, chunk.begin + chunk.bytes) for _, chunk in self._chunks if chunk.bytes]
        for begin, end in [*spans, (self._file.bytes, self._file.bytes)]:
            if begin != position:
                place = min(begin, position), max(begin, position)
                found = "none" if begin > position else "two"
                self._add(DamageKind.manifest, place, "one chunk for each byte", found)
            position = max(position, end)
        for name, count in Counter(leaf.name for leaf, _ in self._chunks).items():
            if count > 1:
                self._add(DamageKind.manifest, None, "one chunk of a leaf in a file", str(count), leaf=name)

    def _check_header(self) -> None:
        reader, file = self.reader(), self._file
        if reader is None:
            return
        if not is_header_length(file.header_bytes, file_bytes=file.bytes):
            self._add(DamageKind.manifest, None, "a length of the header", f"{file.header_bytes:,} bytes")
            return
        place = 0, file.header_bytes
        header = self._read_header(reader)
        if header is None:
            return
        found = xxhash.xxh3_128_hexdigest(header)
        if found != file.header_checksum:
            self._add(DamageKind.header, place, file.header_checksum, found)
        chunks = {leaf.name: (leaf, chunk) for leaf, chunk in self._chunks}
        for fault in check_header(header, file, chunks, save_id=self._save_id):
            expected, found = (f"{fault.field} {value}" for value in (fault.expected, fault.found))
            self._add(DamageKind.header, place, expected, found, leaf=fault.leaf)

    def _read_header(self, reader: FileReader) -> bytes | None:
        length = self._file.header_bytes
        # Nothing is allocated for a length that only the manifest claims.
        if self._size < length:
            self._add(DamageKind.header, (0, length), f"{length:,} bytes", "the file ends before")
            return None
        header = bytearray(length)
        count = self._read(reader, 0, memoryview(header))
        return bytes(header) if count == length else None

    def _check_data(self, piece: Piece, memory: memoryview) -> None:
        reader = self.reader()
        if reader is None:
            return
        begin = piece[0].begin
        # The first piece tells of all that follows it, the others of what is new.
        ahead = begin if begin == self._file.header_bytes else begin + _AHEAD_BYTES
        reader.will_need(ahead, begin + _AHEAD_BYTES + memory.nbytes - ahead)
        count = self._read(reader, begin, memory)
        if count is None:
            return
        found = (
            damage
            for blocks in piece
            for damage in self._check_blocks(blocks, memory[blocks.begin - begin : blocks.end - begin], begin + count)
        )
        # Merged at once: a file of which nothing is right has a great many blocks.
        self.damage.extend(merged(found))

    def _check_blocks(self, blocks: Blocks, memory: memoryview, read_to: int) -> Iterator[Damage]:
        chunk, size = blocks.chunk, blocks.chunk.block_bytes
        there = memory.nbytes if read_to >= blocks.end else max(0, read_to - blocks.begin) // size * size
        for index, found in wrong_blocks(chunk, blocks.first, memory[:there]):
            place, expected = chunk.place_of(index), chunk.checksums[index]
            yield self._damage(DamageKind.data, place, expected, found, leaf=blocks.leaf)
        for index in range(blocks.first + -(-there // size), blocks.first + -(-memory.nbytes // size)):
            place, expected = chunk.place_of(index), chunk.checksums[index]
            yield self._damage(DamageKind.absent, place, expected, "nothing", leaf=blocks.leaf)

    def _read(self, reader: FileReader, offset: int, memory: memoryview) -> int | None:
        """Fill ``memory``; return how many bytes there were, None, with the reason noted, after an error."""
        try:
            count = reader.read(offset, [memory])
        except OSError as error:
            self._failed(error, (offset, offset + memory.nbytes))
            return None
        with self._lock:
            self.bytes += count
        self._advance(count)
        return count

    def _failed(self, error: OSError, place: tuple[int, int]) -> None:
        if error.errno == errno.EIO:
            self._add(DamageKind.unreadable, place, "bytes", error.strerror or str(error))
            return
        self.unread.append(f"{self._place.name} cannot be read at byte {place[0]:,}: {error}")

    def _add(
        self, kind: DamageKind, place: tuple[int, int] | None, expected: str, found: str, leaf: str | None = None
    ) -> None:
        # Like all that is found: list.append() needs no lock.
        self.damage.append(self._damage(kind, place, expected, found, leaf))

    def _damage(
        self, kind: DamageKind, place: tuple[int, int] | None, expected: str, found: str, leaf: str | None = None
    ) -> Damage:
        begin, end = place if place is not None else (None, None)
        return Damage(kind=kind, file=self._place.name, leaf=leaf, begin=begin, end=end, expected=expected, found=found)


def _blocks_of(leaf: Leaf, chunk: Chunk) -> Iterator[Blocks]:
    """Cut a chunk into runs of whole blocks that are read at once."""
    count = max(1, PIECE_BYTES // chunk.block_bytes)
    for first in range(0, len(chunk.checksums), count):
        begin = first * chunk.block_bytes
        end = min(begin + count * chunk.block_bytes, chunk.bytes)
        yield Blocks(leaf.name, chunk, first, chunk.begin + begin, chunk.begin + end)
