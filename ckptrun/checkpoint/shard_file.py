"""The bytes of one shard file: a plain safetensors file, its chunks in blocks that are checked whenever they are read.

::

    8 bytes     n, little-endian: length of the JSON that follows
    n bytes     JSON, padded with spaces so that 8 + n is a multiple of 4096
    the rest    the chunks, one after the other without holes, largest elements first

``docs/format.md`` is the normative text. Must not know torch, ranks, or what a leaf is for.
"""

import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from ckptrun.checkpoint.backend import Location
from ckptrun.checkpoint.dtypes import item_bytes, stored_as
from ckptrun.checkpoint.manifest import Chunk, ShardFile
from ckptrun.errors import InternalError, ShardFileError

__all__ = ["FilePlan", "PlannedChunk", "check_file", "plan_file", "read_checked", "write_file"]

_ALIGNMENT = 4096
_MAX_HEADER_BYTES = 100_000_000  # what safetensors accepts
_MIN_BLOCK_BYTES = 64 * 2**10
_MAX_BLOCK_BYTES = 2**20
_BLOCKS_PER_CHUNK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedChunk:
    """A chunk that is to be written."""

    leaf: str
    dtype: str
    shape: tuple[int, ...]
    """Of the full tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """How long it is."""
        count = item_bytes(self.dtype)
        for size in self.sizes:
            count *= size
        return count


@dataclass(frozen=True, slots=True, kw_only=True)
class FilePlan:
    """A shard file before its data: everything that follows from shapes alone."""

    name: str
    header: bytes
    chunks: tuple[PlannedChunk, ...]
    """In the order of the file."""

    @property
    def bytes(self) -> int:
        """Length of the whole file."""
        return len(self.header) + sum(chunk.bytes for chunk in self.chunks)


def plan_file(name: str, chunks: Iterable[PlannedChunk], *, save_id: str) -> FilePlan:
    """Lay out a file. No two ``chunks`` may be of one leaf: safetensors has one tensor per name.

    Raises:
        ShardFileError: The header would be larger than any safetensors reader accepts.
    """
    # Every chunk starts at a multiple of its element size, because larger elements come first.
    ordered = tuple(sorted(chunks, key=lambda chunk: (-item_bytes(chunk.dtype), chunk.leaf)))
    sharding = {
        chunk.leaf: {"saved_offsets": _stored_offsets(chunk), "shape": chunk.shape, "dtype": chunk.dtype}
        for chunk in ordered
    }
    entries: dict[str, Any] = {
        "__metadata__": {
            "format": "pt",
            "ckptrun_format": "1",
            "save_id": save_id,
            "DCP_VERSION": "1.0",
            "DCP_SHARDING_INFO": json.dumps(sharding),
        }
    }
    position = 0
    for chunk in ordered:
        dtype, shape = stored_as(chunk.dtype, chunk.sizes)
        entries[chunk.leaf] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + chunk.bytes]}
        position += chunk.bytes
    return FilePlan(name=name, header=_header(entries, name), chunks=ordered)


def _stored_offsets(chunk: PlannedChunk) -> list[int]:
    """Offsets with as many dims as the stored shape: torch's reader adds the two up."""
    _, shape = stored_as(chunk.dtype, chunk.sizes)
    return [*chunk.offsets, *[0] * (len(shape) - len(chunk.sizes))]


def _header(entries: Mapping[str, Any], name: str) -> bytes:
    text = json.dumps(entries, separators=(",", ":")).encode()
    total = -(-(8 + len(text)) // _ALIGNMENT) * _ALIGNMENT
    if total > _MAX_HEADER_BYTES:
        raise ShardFileError(f"The header of {name} would have {total} bytes; safetensors takes {_MAX_HEADER_BYTES}.")
    return struct.pack("<Q", total - 8) + text.ljust(total - 8)


def write_file(
    folder: Location, plan: FilePlan, buffers: Iterable[memoryview]
) -> tuple[ShardFile, list[tuple[str, Chunk]]]:
    """Write a planned file; ``buffers`` gives the bytes of each chunk, in the order of ``plan.chunks``.

    Each buffer is hashed and written before the next is asked for.

    Returns:
        The file, and each chunk with the name of its leaf.

    Raises:
        OSError: From the storage; part of the file may lie there.
    """
    written: list[tuple[str, Chunk]] = []

    def blocks() -> Iterator[memoryview]:
        yield memoryview(plan.header)
        position = len(plan.header)
        for chunk, buffer in zip(plan.chunks, buffers, strict=True):
            if buffer.nbytes != chunk.bytes:
                raise InternalError(f"Leaf '{chunk.leaf}' gave {buffer.nbytes} bytes, planned were {chunk.bytes}.")
            written.append((chunk.leaf, _chunk(plan.name, chunk, position, buffer)))
            yield buffer
            position += buffer.nbytes

    file = folder.child(plan.name)
    file.backend.write_file(file.path, blocks())
    checksum = xxhash.xxh3_128(plan.header).hexdigest()
    return (
        ShardFile(name=plan.name, bytes=plan.bytes, header_bytes=len(plan.header), header_checksum=checksum),
        written,
    )


def _chunk(file: str, planned: PlannedChunk, begin: int, buffer: memoryview) -> Chunk:
    block_bytes = _block_bytes(buffer.nbytes)
    starts = range(0, buffer.nbytes, block_bytes)
    return Chunk(
        file=file,
        begin=begin,
        bytes=buffer.nbytes,
        offsets=planned.offsets,
        sizes=planned.sizes,
        block_bytes=block_bytes,
        checksums=tuple(xxhash.xxh3_128(buffer[start : start + block_bytes]).hexdigest() for start in starts),
    )


def _block_bytes(chunk_bytes: int) -> int:
    """Fine enough that a reader of half a chunk reads little more than half of it, coarse enough for the manifest."""
    wanted = 1 << max(0, (chunk_bytes // _BLOCKS_PER_CHUNK).bit_length() - 1)
    return min(max(wanted, _MIN_BLOCK_BYTES), _MAX_BLOCK_BYTES)


def check_file(folder: Location, file: ShardFile, *, leaf: str | None = None) -> None:
    """Check length and header of a file against the manifest; ``leaf`` is what it is needed for, for messages.

    Raises:
        ShardFileError: The file is missing, cut, longer, or has another header.
    """
    place = folder.child(file.name)
    needed = "" if leaf is None else f" (needed for leaf '{leaf}')"
    try:
        size = place.backend.size(place.path)
    except FileNotFoundError as error:
        raise _damaged(folder, file.name, f"is missing{needed}; the manifest says {file.bytes} bytes") from error
    if size != file.bytes:
        raise _damaged(folder, file.name, f"has {size} bytes{needed}, the manifest says {file.bytes}")
    if not 8 <= file.header_bytes <= min(file.bytes, _MAX_HEADER_BYTES):
        raise _damaged(folder, file.name, f"cannot have a header of {file.header_bytes} bytes")
    header = bytearray(file.header_bytes)
    _read_exactly(folder, file.name, 0, memoryview(header))
    found = xxhash.xxh3_128(header).hexdigest()
    if found != file.header_checksum:
        raise _damaged(
            folder, file.name, f"has a header{needed} with checksum {found}, the manifest says {file.header_checksum}"
        )


def read_checked(folder: Location, leaf: str, chunk: Chunk, begin: int, target: memoryview) -> None:
    """Fill ``target`` with the bytes of ``chunk`` from ``begin`` on, reading no more than the blocks they lie in.

    Raises:
        ShardFileError: The file is missing or cut, or a block has another checksum; ``target`` is then undefined.
    """
    end = begin + target.nbytes
    size = chunk.block_bytes
    position = begin
    while position < end:
        block = position // size
        block_begin, block_end = block * size, min((block + 1) * size, chunk.bytes)
        if block_begin == position and block_end <= end:
            whole_end = end if end == chunk.bytes else end // size * size
            part = target[position - begin : whole_end - begin]
            _read_exactly(folder, chunk.file, chunk.begin + position, part)
            _check_blocks(folder, leaf, chunk, block, part)
            position = whole_end
        else:
            # Only part of this block is wanted, but the whole of it has the checksum.
            scratch = memoryview(bytearray(block_end - block_begin))
            _read_exactly(folder, chunk.file, chunk.begin + block_begin, scratch)
            _check_blocks(folder, leaf, chunk, block, scratch)
            stop = min(block_end, end)
            target[position - begin : stop - begin] = scratch[position - block_begin : stop - block_begin]
            position = stop


def _check_blocks(folder: Location, leaf: str, chunk: Chunk, first: int, found: memoryview) -> None:
    size = chunk.block_bytes
    for index, start in enumerate(range(0, found.nbytes, size), start=first):
        checksum = xxhash.xxh3_128(found[start : start + size]).hexdigest()
        if checksum != chunk.checksums[index]:
            begin = chunk.begin + index * size
            end = min(begin + size, chunk.begin + chunk.bytes)
            raise _damaged(
                folder,
                chunk.file,
                f"is damaged in leaf '{leaf}': bytes {begin} to {end} have checksum {checksum}, the manifest says "
                f"{chunk.checksums[index]}",
            )


def _read_exactly(folder: Location, name: str, offset: int, target: memoryview) -> None:
    file = folder.child(name)
    try:
        count = file.backend.read_into(file.path, offset, target)
    except FileNotFoundError as error:
        raise _damaged(folder, name, "is missing") from error
    if count != target.nbytes:
        raise _damaged(folder, name, f"ends after {offset + count} bytes, {offset + target.nbytes} were expected")


def _damaged(folder: Location, name: str, what: str) -> ShardFileError:
    return ShardFileError(f"Shard file {name} of {folder} {what}. Load another checkpoint.", folder=str(folder))
