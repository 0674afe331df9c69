"""The header of a safetensors file, checked: https://huggingface.co/docs/safetensors. Must not know torch.

Not read through the package of that name, which maps local files: a file may lie behind any URL, and may be cut while
it is being read.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptrun.engine.shard_file import METADATA
from ckptrun.errors import ForeignFileError
from ckptrun.text import cut

__all__ = ["DTYPES", "Entry", "Header", "parse_header", "without_duplicates"]

DTYPES: Mapping[str, tuple[str, int]] = {
    "F64": ("float64", 8),
    "F32": ("float32", 4),
    "F16": ("float16", 2),
    "BF16": ("bfloat16", 2),
    "C64": ("complex64", 8),
    "I64": ("int64", 8),
    "I32": ("int32", 4),
    "I16": ("int16", 2),
    "I8": ("int8", 1),
    "U64": ("uint64", 8),
    "U32": ("uint32", 4),
    "U16": ("uint16", 2),
    "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
    "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", 1),
    "F8_E5M2": ("float8_e5m2", 1),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", 1),
    "F8_E8M0": ("float8_e8m0fnu", 1),
    "F4": ("float4_e2m1fn_x2", 1),
}
"""The name in torch, and the bytes of an element. Of F4 torch has two numbers in an element: the last dim is halved."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A tensor in a file."""

    dtype: str
    """As torch names it."""
    shape: tuple[int, ...]
    """As torch has it."""
    begin: int
    """Counted from the start of the data."""
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What is in a file."""

    entries: Mapping[str, Entry]
    """In the order of the data."""
    metadata: Mapping[str, str]


class _NotInOrder(ValueError):
    """Something is not what it should be."""


def parse_header(raw: bytes, *, data_bytes: int, source: str) -> Header:
    """Read the JSON between the first 8 bytes and the data; ``source`` names the file in messages.

    Raises:
        ForeignFileError: It is none, or does not fit the data.
    """
    try:
        fields = json.loads(raw, object_pairs_hook=without_duplicates)
        if not isinstance(fields, dict):
            raise _NotInOrder("its header is no object")
        metadata = fields.pop(METADATA, {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise _NotInOrder(f"its {METADATA} does not map text to text")
        entries = {name: _entry(name, entry) for name, entry in fields.items()}
        ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].bytes)))
        _require_no_holes(ordered, data_bytes)
    except (ValueError, RecursionError) as error:
        raise ForeignFileError(f"{source} is no safetensors file, or damaged: {error}.", folder=source) from error
    return Header(entries=ordered, metadata=metadata)


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Take the fields of a JSON object, as ``json`` hands them over (``object_pairs_hook``).

    Raises:
        ValueError: Two have one name; ``json`` alone would keep the last.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands in it twice")
    return found


def _entry(name: str, entry: Any) -> Entry:
    fields = entry if isinstance(entry, dict) else {}
    dtype, shape, offsets = fields.get("dtype"), _counts(fields.get("shape")), _counts(fields.get("data_offsets"))
    if not isinstance(dtype, str) or dtype not in DTYPES or shape is None or offsets is None or len(offsets) != 2:
        raise _NotInOrder(f"the entry of {cut(name, 80)} is {cut(entry, 200)}")
    torch_name, item_bytes = DTYPES[dtype]
    if dtype == "F4":
        if not shape or shape[-1] % 2:
            raise _NotInOrder(f"{cut(name, 80)} has half an element: it is F4 of shape {shape}")
        shape = [*shape[:-1], shape[-1] // 2]
    begin, end = offsets
    if end - begin != math.prod(shape) * item_bytes:
        raise _NotInOrder(f"{cut(name, 80)}, {dtype} of shape {shape}, has the bytes {begin} to {end}")
    return Entry(dtype=torch_name, shape=tuple(shape), begin=begin, bytes=end - begin)


def _counts(value: Any) -> list[int] | None:
    is_right = isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)
    return value if is_right else None


def _require_no_holes(entries: Mapping[str, Entry], data_bytes: int) -> None:
    position = 0
    for name, entry in entries.items():
        if entry.begin != position:
            raise _NotInOrder(f"{cut(name, 80)} starts at byte {entry.begin} of the data, not at {position}")
        position += entry.bytes
    if position != data_bytes:
        raise _NotInOrder(f"its tensors have {position} bytes, and there are {data_bytes}")
