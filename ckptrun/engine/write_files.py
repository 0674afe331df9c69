"""Writes planned shard files: copies, hashes and writes in blocks, all three at the same time.

::

    chunks -> [copy into a free block, hash it there]  this thread
                        |  blocks of the file, page-aligned, 8 MiB
                        v
              [write]  [write]                         as many threads as the storage takes at once
                        |
                        v
              free blocks

What is hashed is the copy that is written, so a checksum and the bytes beside it never differ. Blocks are kept from
save to save; nothing is held beside them, however large the state. Must not know torch, ranks, or what a leaf is for.
"""

import contextlib
import functools
import mmap
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Protocol

import xxhash

from ckptrun.engine.backends.interface import FileWriter, Location
from ckptrun.engine.manifest import Chunk, ShardFile
from ckptrun.engine.points import PointHook, untold
from ckptrun.engine.shard_file import FilePlan, PlannedChunk, block_bytes_of
from ckptrun.errors import InternalError
from ckptrun.forks import Process, this_process

__all__ = ["ByteSource", "WrittenFile", "write_files"]

_SPARE_BLOCKS = 2


class ByteSource(Protocol):
    """The bytes of one chunk."""

    bytes: int
    step_bytes: int
    """In what pieces they are best copied: small enough to stay in a cache, large enough for a transfer."""

    def copy(self, begin: int, target: memoryview) -> None:
        """Fill ``target`` from byte ``begin`` on. Both ends are multiples of the element size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenFile:
    """A file that lies on storage, with the leaf and place of each chunk in it."""

    file: ShardFile
    chunks: tuple[tuple[str, Chunk], ...]


def write_files(
    folder: Location,
    plans: Sequence[FilePlan],
    source_of: Callable[[FilePlan, PlannedChunk], ByteSource],
    *,
    reached: PointHook = untold,
) -> list[WrittenFile]:
    """Write files; return when all are durable.

    Space for all of them is reserved before the first byte. After an error none of them is there, as far as the storage
    still obeys.

    Args:
        folder: Exists.
        plans: No two of one name.
        source_of: Asked for each chunk once, in the order of the files.
        reached: Told ``writing`` in the middle of each file.

    Raises:
        OSError: From the storage.
    """
    writers: list[FileWriter] = []
    process = this_process()
    try:
        for plan in plans:
            writers.append(folder.backend.create(folder.child(plan.name).path, plan.bytes))
        written = []
        with _Blocks(writers) as blocks:
            for plan, writer in zip(plans, writers, strict=True):
                written.append(_write(plan, writer, blocks, functools.partial(source_of, plan), reached))
            blocks.wait()
    except BaseException:
        # A process that was forked in here, and leaves by an error, must not take its parent's files away.
        for writer in writers if process is this_process() else ():
            # What went wrong first is what counts; what stays is a leftover.
            with contextlib.suppress(OSError):
                writer.abort()
        raise
    _finish(writers)
    return written


def _finish(writers: Sequence[FileWriter]) -> None:
    for index, writer in enumerate(writers):
        try:
            writer.finish()
        except BaseException:
            for other in writers[index + 1 :]:
                with contextlib.suppress(OSError):
                    other.abort()
            raise


def _write(
    plan: FilePlan,
    writer: FileWriter,
    blocks: "_Blocks",
    source_of: Callable[[PlannedChunk], ByteSource],
    reached: PointHook,
) -> WrittenFile:
    stream = _Stream(writer, blocks)
    stream.put(memoryview(plan.header))
    chunks = []
    half = len(plan.chunks) // 2
    for index, chunk in enumerate(plan.chunks):
        if index == half:
            reached("writing")
        source = source_of(chunk)
        if source.bytes != chunk.bytes:
            raise InternalError(f"Leaf '{chunk.leaf}' gave {source.bytes} bytes, planned were {chunk.bytes}.")
        begin, block_bytes = stream.position, block_bytes_of(chunk.bytes)
        checksums = _put(stream, source, block_bytes)
        written = Chunk(
            file=plan.name,
            begin=begin,
            bytes=chunk.bytes,
            offsets=chunk.offsets,
            sizes=chunk.sizes,
            block_bytes=block_bytes,
            checksums=checksums,
        )
        chunks.append((chunk.leaf, written))
    stream.flush()
    checksum = xxhash.xxh3_128_hexdigest(plan.header)
    file = ShardFile(name=plan.name, bytes=plan.bytes, header_bytes=len(plan.header), header_checksum=checksum)
    return WrittenFile(file=file, chunks=tuple(chunks))


def _put(stream: "_Stream", source: ByteSource, block_bytes: int) -> tuple[str, ...]:
    """Append a chunk; return the checksums of its blocks."""
    checksums: list[str] = []
    hasher = None
    position = 0
    while position < source.bytes:
        space = stream.space()
        piece = space[: min(source.bytes - position, source.step_bytes)]
        source.copy(position, piece)
        done = 0
        while done < piece.nbytes:
            left = block_bytes - (position + done) % block_bytes
            part = piece[done : done + left]
            done += part.nbytes
            ends = part.nbytes == left or position + done == source.bytes
            if hasher is None and ends:
                checksums.append(xxhash.xxh3_128_hexdigest(part))
                continue
            hasher = hasher if hasher is not None else xxhash.xxh3_128()
            hasher.update(part)
            if ends:
                checksums.append(hasher.hexdigest())
                hasher = None
        stream.advance(piece.nbytes)
        position += piece.nbytes
    return tuple(checksums)


class _Stream:
    """The bytes of one file, one after the other, cut into its blocks."""

    def __init__(self, writer: FileWriter, blocks: "_Blocks") -> None:
        self._writer = writer
        self._blocks = blocks
        self._begin = 0
        self._filled = 0
        self._block: memoryview | None = None

    @property
    def position(self) -> int:
        """How many bytes there are so far."""
        return self._begin + self._filled

    def space(self) -> memoryview:
        """Return where the next bytes go, at least one."""
        if self._block is None:
            self._block = self._blocks.take()
        return self._block[self._filled : self._writer.block_bytes]

    def advance(self, count: int) -> None:
        """Take note that ``count`` bytes are in the space."""
        self._filled += count
        if self._filled == self._writer.block_bytes:
            self.flush()

    def put(self, raw: memoryview) -> None:
        """Append bytes."""
        while raw.nbytes:
            space = self.space()
            count = min(space.nbytes, raw.nbytes)
            space[:count] = raw[:count]
            self.advance(count)
            raw = raw[count:]

    def flush(self) -> None:
        """Hand over what is in the last block."""
        if self._block is None:
            return
        self._blocks.write(self._writer, self._begin, self._block, self._filled)
        self._begin += self._filled
        self._filled = 0
        self._block = None


class _Blocks:
    """The blocks of one save, and the threads that write them. Used by one thread."""

    def __init__(self, writers: Sequence[FileWriter]) -> None:
        self._size = max((writer.block_bytes for writer in writers), default=0)
        self._threads = min((writer.writes_at_once for writer in writers), default=1)
        self._executor = ThreadPoolExecutor(self._threads, thread_name_prefix="ShardWriter")
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._running: set[Future[None]] = set()
        self._owned: list[mmap.mmap] = []
        self._process: Process = this_process()

    def __enter__(self) -> "_Blocks":
        self._owned = _take_blocks(self._threads + _SPARE_BLOCKS, self._size)
        for block in self._owned:
            self._free.put(memoryview(block))
        return self

    def __exit__(self, *_: object) -> None:
        if self._process is not this_process():
            return
        self._executor.shutdown(wait=True, cancel_futures=True)
        while not self._free.empty():
            self._free.get().release()
        _give_back(self._owned, self._size)

    def take(self) -> memoryview:
        """Return a free block; raise what a write raised."""
        self._require_own_process()
        self._reap(timeout_s=0)
        while True:
            try:
                return self._free.get(timeout=0 if not self._running else 0.05)
            except queue.Empty:
                self._reap(timeout_s=0)

    def write(self, writer: FileWriter, offset: int, block: memoryview, count: int) -> None:
        """Start to write the first ``count`` bytes of a block, which is free afterwards."""
        self._running.add(self._executor.submit(self._write, writer, offset, block, count))

    def _write(self, writer: FileWriter, offset: int, block: memoryview, count: int) -> None:
        writer.write(offset, block[:count])
        self._free.put(block)

    def wait(self) -> None:
        """Return when all is written; raise what a write raised."""
        self._require_own_process()
        self._reap(timeout_s=None)

    def _require_own_process(self) -> None:
        if self._process is not this_process():
            # The threads that write are the parent's.
            raise InternalError("A forked process cannot go on with a save of its parent; it can start one of its own.")

    def _reap(self, *, timeout_s: float | None) -> None:
        done, self._running = wait(self._running, timeout_s, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()


_LOCK = threading.Lock()
_KEPT: dict[int, list[mmap.mmap]] = {}


def _start_anew() -> None:
    """In a forked child: the blocks are its parent's, and a thread that is not here may hold the lock."""
    global _LOCK  # one for the whole process
    _LOCK = threading.Lock()
    _KEPT.clear()


os.register_at_fork(after_in_child=_start_anew)


def _take_blocks(count: int, size: int) -> list[mmap.mmap]:
    """Return page-aligned memory, that of earlier saves first."""
    if not size:
        return []
    with _LOCK:
        kept = _KEPT.get(size, [])
        taken = [kept.pop() for _ in range(min(count, len(kept)))]
    return taken + list(_new_blocks(count - len(taken), size))


def _new_blocks(count: int, size: int) -> Iterator[mmap.mmap]:
    for _ in range(count):
        # Private, or a forked child would write into the same memory.
        yield mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _give_back(blocks: list[mmap.mmap], size: int) -> None:
    with _LOCK:
        # Saves that ran side by side leave more than one needs.
        kept = _KEPT.setdefault(size, [])
        kept.extend(blocks[: max(0, len(blocks) - len(kept))])
