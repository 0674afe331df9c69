"""Whether the header of a shard file says what the manifest says: names, dtypes, shapes, places, save id.

A checksum of the header tells that it is not what was written; this tells what it says instead, and whether what was
written was right. Other programs read the header alone (``safetensors``, torch's ``HuggingFaceStorageReader``), so a
header that contradicts the manifest gives them wrong tensors. ``docs/format.md``, section 5. Must not import torch.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckptrun.engine.dtypes import stored_as
from ckptrun.engine.manifest import Chunk, Leaf, ShardFile
from ckptrun.engine.shard_file import METADATA, SHARDING
from ckptrun.formats.safetensors_format.header import without_duplicates

__all__ = ["HeaderFault", "check_header"]

_ALIGNMENT = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderFault:
    """Something that the header says and the manifest does not."""

    leaf: str | None
    field: str
    expected: str
    found: str


def check_header(
    raw: bytes, file: ShardFile, chunks: Mapping[str, tuple[Leaf, Chunk]], *, save_id: str
) -> Iterator[HeaderFault]:
    """Yield each contradiction.

    Args:
        raw: The first ``file.header_bytes`` bytes of the file.
        file: What the manifest says of the file.
        chunks: Leaf name -> the chunk of it that lies in this file.
        save_id: That of the manifest.
    """
    yield from _differing("length of the header", file.header_bytes - 8, struct.unpack("<Q", raw[:8])[0])
    if file.header_bytes % _ALIGNMENT:
        yield HeaderFault(
            leaf=None, field="start of the data", expected=f"a multiple of {_ALIGNMENT}", found=str(file.header_bytes)
        )
    try:
        header = json.loads(raw[8:].decode(), object_pairs_hook=without_duplicates)
    except (ValueError, RecursionError) as error:
        yield HeaderFault(leaf=None, field="header", expected="JSON", found=str(error))
        return
    if not isinstance(header, dict):
        yield HeaderFault(leaf=None, field="header", expected="an object", found=_shown(header))
        return
    metadata = header.pop(METADATA, None)
    yield from _check_names(header, chunks, field="tensors")
    for name, (leaf, chunk) in chunks.items():
        if name in header:
            yield from _differing("entry", _entry(leaf, chunk, file), header[name], leaf=name)
    yield from _check_metadata(metadata, chunks, save_id)


def _entry(leaf: Leaf, chunk: Chunk, file: ShardFile) -> dict[str, Any]:
    dtype, shape = stored_as(str(leaf.dtype), chunk.sizes)
    begin = chunk.begin - file.header_bytes
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + chunk.bytes]}


def _check_names(
    found: Mapping[str, Any], chunks: Mapping[str, tuple[Leaf, Chunk]], *, field: str
) -> Iterator[HeaderFault]:
    for name in chunks.keys() - found.keys():
        yield HeaderFault(leaf=name, field=field, expected="an entry", found="none")
    for name in found.keys() - chunks.keys():
        yield HeaderFault(leaf=name, field=field, expected="no entry", found=_shown(found[name]))


def _check_metadata(metadata: Any, chunks: Mapping[str, tuple[Leaf, Chunk]], save_id: str) -> Iterator[HeaderFault]:
    if not isinstance(metadata, dict):
        yield HeaderFault(leaf=None, field=METADATA, expected="an object", found=_shown(metadata))
        return
    fixed = {"format": "pt", "ckptrun_format": "1", "save_id": save_id, "DCP_VERSION": "1.0"}
    for key, expected in fixed.items():
        yield from _differing(key, expected, metadata.get(key))
    try:
        sharding = json.loads(metadata.get(SHARDING, ""), object_pairs_hook=without_duplicates)
    except (ValueError, TypeError, RecursionError) as error:
        yield HeaderFault(leaf=None, field=SHARDING, expected="JSON", found=str(error))
        return
    if not isinstance(sharding, dict):
        yield HeaderFault(leaf=None, field=SHARDING, expected="an object", found=_shown(sharding))
        return
    yield from _check_names(sharding, chunks, field=SHARDING)
    for name, (leaf, chunk) in chunks.items():
        if name in sharding:
            yield from _differing(SHARDING, _sharding_of(leaf, chunk), sharding[name], leaf=name)


def _sharding_of(leaf: Leaf, chunk: Chunk) -> dict[str, Any]:
    _, stored_shape = stored_as(str(leaf.dtype), chunk.sizes)
    extra_dims = len(stored_shape) - len(chunk.sizes)
    return {
        "saved_offsets": [*chunk.offsets, *[0] * extra_dims],
        "shape": list(leaf.shape or ()),
        "dtype": leaf.dtype,
    }


def _differing(field: str, expected: Any, found: Any, *, leaf: str | None = None) -> Iterator[HeaderFault]:
    # True equals 1 in Python, and 1.0 does.
    if expected != found or json.dumps(expected, sort_keys=True) != json.dumps(found, sort_keys=True):
        yield HeaderFault(leaf=leaf, field=field, expected=_shown(expected), found=_shown(found))


def _shown(value: Any) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:
        return "something nested too deeply"
    return text if len(text) <= 200 else f"{text[:197]}..."
