"""Reads the shard files of one checkpoint: only what is asked for, checked before it is handed out, in parallel.

What is asked for is a list of ranges of chunks with the memory where each shall go. Ranges are widened to the blocks
that have a checksum; whole blocks go straight to their memory, the rest of a block to a buffer of its own. Ranges that
lie beside each other in a file are read with one call. Must not know torch, ranks, or what a leaf is for.
"""

import errno
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Self

import xxhash

from ckptrun.engine.backends.interface import FileReader, Location
from ckptrun.engine.manifest import Chunk, ShardFile
from ckptrun.engine.shard_file import is_header_length
from ckptrun.errors import ShardFileError

__all__ = ["Range", "ShardFiles", "wrong_blocks"]

_BATCH_RANGES = 1024


@dataclass(slots=True)
class Range:
    """Bytes of a chunk, and where they go."""

    leaf: str
    chunk: Chunk
    begin: int
    """Counted from the start of the chunk."""
    target: memoryview
    """Not empty."""


@dataclass(slots=True)
class _Blocks:
    """Whole blocks of one chunk that lie beside each other."""

    leaf: str
    chunk: Chunk
    first: int
    memory: memoryview
    wanted: tuple[int, memoryview] | None = None
    """Where ``memory`` is a buffer: from which byte of it on the target is filled."""

    @property
    def begin(self) -> int:
        """In the file."""
        return self.chunk.place_of(self.first)[0]


def wrong_blocks(chunk: Chunk, first: int, memory: memoryview) -> Iterator[tuple[int, str]]:
    """Yield the number and the checksum of each block in ``memory``, whole ones from ``first`` on, that has another."""
    size = chunk.block_bytes
    for index, start in enumerate(range(0, memory.nbytes, size), start=first):
        found = xxhash.xxh3_128_hexdigest(memory[start : start + size])
        if found != chunk.checksums[index]:
            yield index, found


class ShardFiles:
    """The shard files of one checkpoint, opened when they are first needed, each checked against the manifest then.

    Used by one thread; a context manager, which closes the files.
    """

    def __init__(self, folder: Location, files: Mapping[str, ShardFile]) -> None:
        self._folder = folder
        self._files = files
        self._open: dict[str, FileReader] = {}
        self._closing = ExitStack()

    @property
    def folder(self) -> str:
        """The checkpoint, as a user would write it."""
        return str(self._folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()
        self._open.clear()

    def check(self, name: str, *, leaf: str | None = None) -> FileReader:
        """Open a file; check its length and header. ``leaf`` is what it is needed for, for messages.

        Raises:
            ShardFileError: The file is missing, cut, longer, or has another header.
        """
        if name in self._open:
            return self._open[name]
        file, place = self._files[name], self._folder.child(name)
        needed = "" if leaf is None else f" (needed for leaf '{leaf}')"
        try:
            size = place.backend.size(place.path)
            reader = place.backend.open(place.path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                raise self._damaged(name, f"is no regular file{needed}", leaf) from error
            if not isinstance(error, FileNotFoundError | NotADirectoryError):
                raise
            raise self._damaged(name, f"is missing{needed}; the manifest says {file.bytes} bytes", leaf) from error
        self._closing.enter_context(closing(reader))
        if size != file.bytes:
            raise self._damaged(name, f"has {size} bytes{needed}, the manifest says {file.bytes}", leaf)
        if not is_header_length(file.header_bytes, file_bytes=file.bytes):
            raise self._damaged(name, f"cannot have a header of {file.header_bytes} bytes", leaf)
        header = memoryview(bytearray(file.header_bytes))
        self._fill(name, reader, 0, [header], leaf)
        found = xxhash.xxh3_128_hexdigest(header)
        if found != file.header_checksum:
            raise self._damaged(
                name, f"has a header{needed} with checksum {found}, the manifest says {file.header_checksum}", leaf
            )
        self._open[name] = reader
        return reader

    def read(self, ranges: Iterable[Range]) -> None:
        """Fill the targets of ``ranges``; return when all are filled and checked.

        Raises:
            ShardFileError: A file is missing or damaged; the first in the order of files. Targets are then undefined.
        """
        by_file: dict[str, list[Range]] = {}
        for wanted in ranges:
            by_file.setdefault(wanted.chunk.file, []).append(wanted)
        tasks: list[tuple[str, FileReader, list[_Blocks]]] = []
        for name, of_file in sorted(by_file.items()):
            reader = self.check(name, leaf=of_file[0].leaf)
            size = reader.block_bytes
            blocks = [found for wanted in of_file for found in _whole_blocks(wanted, size)]
            blocks.sort(key=lambda found: found.begin)
            tasks.extend((name, reader, batch) for batch in _batches(blocks, size))
        self._run(tasks)

    def _run(self, tasks: Sequence[tuple[str, FileReader, list[_Blocks]]]) -> None:
        threads = min(len(tasks), max((reader.reads_at_once for _, reader, _ in tasks), default=1))
        if threads < 2:
            for task in tasks:
                self._read_batch(*task)
            return
        with ThreadPoolExecutor(threads, thread_name_prefix="ShardReader") as executor:
            running = [executor.submit(self._read_batch, *task) for task in tasks]
            try:
                for future in running:
                    future.result()
            except BaseException:
                executor.shutdown(wait=False, cancel_futures=True)
                raise

    def _read_batch(self, name: str, reader: FileReader, batch: list[_Blocks]) -> None:
        self._fill(name, reader, batch[0].begin, [blocks.memory for blocks in batch], batch[0].leaf)
        for blocks in batch:
            self._require_whole(blocks)
            if blocks.wanted is not None:
                begin, target = blocks.wanted
                target[:] = blocks.memory[begin : begin + target.nbytes]

    def _fill(self, name: str, reader: FileReader, offset: int, buffers: list[memoryview], leaf: str | None) -> None:
        expected = sum(buffer.nbytes for buffer in buffers)
        try:
            count = reader.read(offset, buffers)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise self._damaged(name, f"cannot be read at byte {offset}: {error.strerror}", leaf) from error
        if count != expected:
            raise self._damaged(name, f"ends after {offset + count} bytes, {offset + expected} were expected", leaf)

    def _require_whole(self, blocks: _Blocks) -> None:
        chunk = blocks.chunk
        for index, found in wrong_blocks(chunk, blocks.first, blocks.memory):
            begin, end = chunk.place_of(index)
            what = f"bytes {begin} to {end} have checksum {found}, the manifest says {chunk.checksums[index]}"
            raise self._damaged(chunk.file, f"is damaged in leaf '{blocks.leaf}': {what}", blocks.leaf)

    def _damaged(self, name: str, what: str, leaf: str | None) -> ShardFileError:
        text = f"Shard file {name} of {self.folder} {what}. Load another checkpoint."
        return ShardFileError(text, leaf=leaf, folder=self.folder)


def _whole_blocks(wanted: Range, at_once: int) -> Iterator[_Blocks]:
    """Widen a range to whole blocks, in pieces of about ``at_once`` bytes."""
    chunk, target = wanted.chunk, wanted.target
    size = chunk.block_bytes
    begin, end = wanted.begin, wanted.begin + target.nbytes
    if begin % size == 0 and target.nbytes <= min(size, chunk.bytes - begin) == target.nbytes:
        yield _Blocks(wanted.leaf, chunk, begin // size, target)
        return
    step = max(size, at_once // size * size)
    position = begin
    while position < end:
        block = position // size
        block_begin, block_end = block * size, min((block + 1) * size, chunk.bytes)
        if block_begin == position and block_end <= end:
            whole_end = min(end if end == chunk.bytes else end // size * size, position + step)
            yield _Blocks(wanted.leaf, chunk, block, target[position - begin : whole_end - begin])
            position = whole_end
            continue
        # Only part of this block is wanted, but the whole of it has the checksum.
        stop = min(block_end, end)
        buffer = memoryview(bytearray(block_end - block_begin))
        part = target[position - begin : stop - begin]
        yield _Blocks(wanted.leaf, chunk, block, buffer, (position - block_begin, part))
        position = stop


def _batches(blocks: Sequence[_Blocks], at_once: int) -> Iterator[list[_Blocks]]:
    """Group what lies beside each other, ordered by place, into what is read at once."""
    batch: list[_Blocks] = []
    begin = end = 0
    for found in blocks:
        full = end - begin >= at_once or len(batch) >= _BATCH_RANGES
        if batch and (full or found.begin != end):
            yield batch
            batch = []
        if not batch:
            begin = found.begin
        batch.append(found)
        end = found.begin + found.memory.nbytes
    if batch:
        yield batch
