"""Where the bytes of a tensor lie in what ``torch.save(tensor)`` wrote, which may be a part of a file.

It is a zip archive without compression: ``data.pkl`` says what the tensor is, ``data/0`` holds its memory. With the
place known, rows are read without loading the whole, which ``torch.load`` cannot do in the middle of a file.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ckptrun.engine.dtypes import is_known
from ckptrun.engine.geometry import row_major_strides
from ckptrun.errors import ForeignFileError
from ckptrun.formats.common.files import Files, RangeFile
from ckptrun.formats.common.interface import row_shape
from ckptrun.formats.dcp.pickle_machine import Described, Named, read_pickle
from ckptrun.formats.torch_save.zip_records import ZipRecord, check_record, read_record, read_records

__all__ = ["TORCH_DTYPES", "BlobReader", "TensorBlob", "find_tensor"]

_STORAGES = {
    "torch.DoubleStorage": "float64",
    "torch.FloatStorage": "float32",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.ComplexDoubleStorage": "complex128",
    "torch.ComplexFloatStorage": "complex64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_UNTYPED = "torch.storage.UntypedStorage"
_REBUILD = "torch._utils._rebuild_tensor_v2"
_REBUILD_WITH_DTYPE = "torch._utils._rebuild_tensor_v3"

TORCH_DTYPES: Mapping[str, str] = {
    f"torch.{name}": name for name, value in vars(torch).items() if isinstance(value, torch.dtype) and is_known(name)
}
"""How a pickle names each dtype that is read."""

_ADMITTED = frozenset([*_STORAGES, *TORCH_DTYPES, _UNTYPED, _REBUILD, _REBUILD_WITH_DTYPE, "collections.OrderedDict"])
# What looking at an object of another kind than expected raises.
_ODD = (ValueError, KeyError, IndexError, TypeError, AttributeError)
_SMALL_BYTES = 2**20
_MAX_PICKLE_BYTES = 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorBlob:
    """A tensor in a file."""

    file: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    """In elements, as is ``start``: where the first element lies in the storage."""
    start: int
    begin: int
    """Where the storage starts in the file."""
    elements: int
    """Of the storage."""
    is_conjugated: bool
    is_negated: bool


def find_tensor(files: Files, file: str, offset: int, length: int) -> TensorBlob:
    """Find the tensor that ``torch.save`` wrote to a range of a file, and compare its bytes with their CRC-32.

    Raises:
        ForeignFileError: There is none: the range is damaged, or holds something else.
    """
    what = f"{files.place(file)}, bytes {offset} to {offset + length}"
    # One read for what is small; no copy of what is large.
    stream = (
        io.BytesIO(files.bytes(file, offset, length))
        if length <= _SMALL_BYTES
        else RangeFile(files, file, offset, length)
    )
    with stream:
        records = read_records(stream, length, what=what)
        try:
            saved = _parse(stream, records, what)
            storage = records[f"data/{saved.key}"]
        except _ODD as error:
            raise ForeignFileError(f"{what}: no tensor of torch.save is there ({error}).") from error
        check_record(stream, storage, what=what)
    return _to_blob(saved, file, offset + storage.begin, storage.bytes, what)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Saved:
    """The arguments with which torch would make a tensor of its storage."""

    key: str
    dtype: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    flags: Mapping[Any, Any]


def _parse(stream: io.IOBase, records: Mapping[str, ZipRecord], what: str) -> _Saved:
    if records["data.pkl"].bytes > _MAX_PICKLE_BYTES:
        raise ValueError("data.pkl is too long")
    raw = read_record(stream, records["data.pkl"], what=what)
    byte_order = records.get("byteorder")
    if byte_order is not None and read_record(stream, byte_order, what=what) != b"little":
        raise ValueError("it was written on a big-endian machine")
    return _saved(read_pickle(raw, _ADMITTED, source=f"{what}, data.pkl"))


def _saved(described: Any) -> _Saved:
    if not isinstance(described, Described) or described.of not in (_REBUILD, _REBUILD_WITH_DTYPE):
        raise ValueError("it is no plain tensor")
    # Requires_grad and hooks stand between.
    storage, start, shape, strides = described.args[:4]
    rest = described.args[6:]
    kind, storage_type, key = (
        storage.args[0][:3] if isinstance(storage, Described) and storage.of == "" else (None,) * 3
    )
    if kind != "storage" or not isinstance(storage_type, Named) or not isinstance(key, str):
        raise ValueError("it has no storage")
    if described.of == _REBUILD_WITH_DTYPE:
        named, rest = rest[0], rest[1:]
        dtype = TORCH_DTYPES[named.name]
    else:
        dtype = _STORAGES[storage_type.name]
    flags = rest[0] if rest else {}
    if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
        raise ValueError("it has no shape")
    if not isinstance(flags, dict) or not _are_counts((start, *shape, *strides)):
        raise ValueError("its shape and strides are no counts")
    return _Saved(key=key, dtype=dtype, start=start, shape=shape, strides=strides, flags=flags)


def _are_counts(values: tuple[Any, ...]) -> bool:
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _to_blob(saved: _Saved, file: str, begin: int, storage_bytes: int, what: str) -> TensorBlob:
    dtype = getattr(torch, saved.dtype)
    elements = storage_bytes // dtype.itemsize
    last = saved.start + sum((size - 1) * stride for size, stride in zip(saved.shape, saved.strides, strict=True))
    if math.prod(saved.shape) > elements or (math.prod(saved.shape) and last >= elements):
        raise ForeignFileError(
            f"{what}: a tensor of shape {list(saved.shape)} does not fit the {storage_bytes} bytes that are there."
        )
    return TensorBlob(
        file=file,
        dtype=dtype,
        shape=saved.shape,
        strides=saved.strides,
        start=saved.start,
        begin=begin,
        elements=elements,
        is_conjugated=bool(saved.flags.get("conj")),
        is_negated=bool(saved.flags.get("neg")),
    )


class BlobReader:
    """Reads rows of tensors. Keeps the last storage whose elements are not in row-major order."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._kept: tuple[TensorBlob, Tensor] | None = None

    def read_rows(self, blob: TensorBlob, first: int, count: int) -> Tensor:
        """Return rows of a tensor along dim 0, row-major; a 0-dim tensor is one row."""
        shape, strides = row_shape(blob.shape), blob.strides or (1,)
        wanted = (count, *shape[1:])
        if _is_row_major(shape, strides):
            row = math.prod(shape[1:])
            begin = blob.begin + (blob.start + first * row) * blob.dtype.itemsize
            rows = self._files.elements(blob.file, begin, count * row, blob.dtype).view(wanted)
        else:
            rows = self._storage(blob).as_strided(wanted, strides, blob.start + first * strides[0])
        if blob.is_conjugated:
            rows = torch.conj_physical(rows)
        return (torch.neg(rows) if blob.is_negated else rows).contiguous()

    def _storage(self, blob: TensorBlob) -> Tensor:
        if self._kept is None or self._kept[0] != blob:
            self._kept = None
            self._kept = blob, self._files.elements(blob.file, blob.begin, blob.elements, blob.dtype)
        return self._kept[1]


def _is_row_major(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = row_major_strides(shape)
    return all(size < 2 or one == other for size, one, other in zip(shape, strides, expected, strict=True)) or not all(
        shape
    )
