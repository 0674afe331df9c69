"""How one shard file is laid out: a plain safetensors file. ``write_files`` writes it, ``read_files`` reads it.

::

    8 bytes     n, little-endian: length of the JSON that follows
    n bytes     JSON, padded with spaces so that 8 + n is a multiple of 4096
    the rest    the chunks, one after the other without holes, largest elements first

``docs/format.md`` is the normative text. Must not know torch, ranks, or what a leaf is for.
"""

import functools
import json
import math
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from ckptrun.engine.dtypes import item_bytes, stored_as
from ckptrun.errors import ShardFileError, UnsupportedLeafError

__all__ = [
    "MAX_HEADER_BYTES",
    "METADATA",
    "SHARDING",
    "FilePlan",
    "PlannedChunk",
    "block_bytes_of",
    "is_header_length",
    "plan_file",
    "require_storable_name",
]

METADATA = "__metadata__"
"""Where the header of a safetensors file has what is of no tensor; no tensor may be called so."""
SHARDING = "DCP_SHARDING_INFO"
"""Where in it torch looks for the offsets of chunks."""
MAX_HEADER_BYTES = 100_000_000
"""What safetensors accepts."""

_ALIGNMENT = 4096
_quote = json.encoder.encode_basestring_ascii
_MIN_BLOCK_BYTES = 16 * 2**10
_MAX_BLOCK_BYTES = 2**20
_BLOCKS_PER_CHUNK = 128


@dataclass(frozen=True, kw_only=True)
class PlannedChunk:
    """A chunk that is to be written."""

    leaf: str
    dtype: str
    shape: tuple[int, ...]
    """Of the full tensor."""
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    # No cached_property: it has a lock, which a forked child may find held.
    bytes: int = field(init=False)
    """How long it is."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bytes", item_bytes(self.dtype) * math.prod(self.sizes))


@dataclass(frozen=True, kw_only=True)
class FilePlan:
    """A shard file before its data: everything that follows from shapes alone."""

    name: str
    header: bytes
    chunks: tuple[PlannedChunk, ...]
    """In the order of the file."""
    bytes: int = field(init=False)
    """Length of the whole file."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "bytes", len(self.header) + sum(chunk.bytes for chunk in self.chunks))


def plan_file(file: str, chunks: Iterable[PlannedChunk], *, save_id: str) -> FilePlan:
    """Lay out a file. No two ``chunks`` may be of one leaf: safetensors has one tensor per name.

    Raises:
        ShardFileError: The header would be larger than any safetensors reader accepts.
    """
    # Every chunk starts at a multiple of its element size, because larger elements come first.
    ordered = tuple(sorted(chunks, key=lambda chunk: (-item_bytes(chunk.dtype), chunk.leaf)))
    # Written by hand: there are tens of thousands of them, and json.dumps() takes several times as long.
    entries, sharding = [], []
    position = 0
    for chunk in ordered:
        dtype, shape = stored_as(chunk.dtype, chunk.sizes)
        name, end = _quote(chunk.leaf), position + chunk.bytes
        # As many offsets as dims of the stored shape: torch's reader adds the two up.
        offsets = chunk.offsets + (0,) * (len(shape) - len(chunk.sizes))
        entries.append(f'{name}:{{"dtype":"{dtype}","shape":{_list(shape)},"data_offsets":[{position},{end}]}}')
        sharding.append(
            f'{name}:{{"saved_offsets":{_list(offsets)},"shape":{_list(chunk.shape)},"dtype":"{chunk.dtype}"}}'
        )
        position = end
    metadata = {
        "format": "pt",
        "ckptrun_format": "1",
        "save_id": save_id,
        "DCP_VERSION": "1.0",
        SHARDING: f"{{{','.join(sharding)}}}",
    }
    head = f'"{METADATA}":{json.dumps(metadata, separators=(",", ":"))}'
    return FilePlan(name=file, header=_header(",".join([head, *entries]), file), chunks=ordered)


@functools.lru_cache(maxsize=4096)
def _list(numbers: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, numbers))}]"


def _header(entries: str, name: str) -> bytes:
    text = f"{{{entries}}}".encode()
    total = -(-(8 + len(text)) // _ALIGNMENT) * _ALIGNMENT
    if total > MAX_HEADER_BYTES:
        raise ShardFileError(f"The header of {name} would have {total} bytes; safetensors takes {MAX_HEADER_BYTES}.")
    return struct.pack("<Q", total - 8) + text.ljust(total - 8)


def require_storable_name(leaf: str) -> None:
    """Refuse the one name that a leaf in a safetensors file cannot have.

    Raises:
        UnsupportedLeafError: It is that.
    """
    if leaf == METADATA:
        raise UnsupportedLeafError(f"Leaf '{METADATA}' cannot be stored: safetensors keeps this name for itself.")


def is_header_length(header_bytes: int, *, file_bytes: int) -> bool:
    """Whether a file can begin with so many bytes of a header, the 8 of its length included."""
    return 8 <= header_bytes <= min(file_bytes, MAX_HEADER_BYTES)


def block_bytes_of(chunk_bytes: int) -> int:
    """Return how many bytes each checksum of a chunk covers.

    Fine enough that who needs a seventh of a chunk reads little more than a seventh, coarse enough for the manifest.
    """
    wanted = 1 << max(0, (chunk_bytes // _BLOCKS_PER_CHUNK).bit_length() - 1)
    return min(max(wanted, _MIN_BLOCK_BYTES), _MAX_BLOCK_BYTES)
