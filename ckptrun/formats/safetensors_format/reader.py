"""A ``.safetensors`` file, or a folder of such files.

Such folders are written by Hugging Face tools, with an index; and by ``HuggingFaceStorageWriter`` of torch, which can
spread a tensor over files, and notes in each where its chunks belong.
"""

import json
import math
import struct
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.shard_file import MAX_HEADER_BYTES, SHARDING
from ckptrun.errors import CheckpointNotFoundError, ForeignFileError
from ckptrun.formats.common.file_kind import require_kind
from ckptrun.formats.common.files import Files
from ckptrun.formats.common.interface import Origin, SourceLeaf, row_shape
from ckptrun.formats.common.part_names import is_index_name
from ckptrun.formats.common.pieces import check_boxes, read_rows
from ckptrun.formats.common.shard_set import ShardSet, check_promises, remark_of_part, settled, shard_set
from ckptrun.formats.safetensors_format.header import Entry, Header, parse_header
from ckptrun.text import cut

__all__ = ["INDEX_NAME", "SUFFIX", "SafetensorsSource"]

SUFFIX = ".safetensors"
INDEX_NAME = "model.safetensors.index.json"


class SafetensorsSource:
    """See :class:`~ckptrun.formats.common.interface.Source`.

    Args:
        place: A file, a folder, or an index in it, where there are several.
        incomplete: Whether to go on with what is there where files or tensors are missing.

    Raises:
        ForeignFileError: A file cannot be trusted, or is missing.
        CheckpointNotFoundError: It is what is left of a checkpoint of ckptrun, or a part of one; or holds several.
    """

    format = "safetensors"

    def __init__(self, place: Location, *, incomplete: bool = False) -> None:
        self.address = str(place)
        self.shared: tuple[tuple[str, ...], ...] = ()
        self.origin = Origin()
        only_index = place.name if is_index_name(place.name) else None
        folder = place.parent if only_index is not None else place
        names = folder.backend.list_names(folder.path)
        self._files = Files(folder if names else place.parent)
        self._pieces: dict[str, list[_Piece]] = defaultdict(list)
        with self._files:
            found = (
                shard_set(self._files, names, suffixes=(SUFFIX,), only_index=only_index)
                if names
                else ShardSet(files=[place.name], remarks=remark_of_part(place))
            )
            for file in found.files:
                self._add(file)
        mapped = found.mapped
        check_promises(found, self._held(), sum(self._bytes.values()))
        self.remarks: tuple[str, ...] = settled(found, address=self.address, incomplete=incomplete)
        named = [name for name in mapped or () if name in self._pieces]
        self.leaves: Mapping[str, SourceLeaf] = {
            name: self._leaf(name) for name in dict.fromkeys([*named, *self._pieces])
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.__exit__()

    def read_rows(self, name: str, first: int, count: int) -> Tensor:
        """See ``Source``."""
        return read_rows(self.leaves[name], self._pieces[name], first, count, address=self.address)

    def _held(self) -> dict[str, set[str]]:
        """The files that each tensor is in."""
        return {name: {piece.file for piece in pieces} for name, pieces in self._pieces.items()}

    @property
    def _bytes(self) -> dict[str, int]:
        return {name: sum(piece.bytes for piece in pieces) for name, pieces in self._pieces.items()}

    def _add(self, file: str) -> None:
        try:
            header, begin = _read_header(self._files, file)
        except ForeignFileError:
            # Perhaps it is none at all, such as a pointer to a file that was not fetched.
            require_kind(self._files.place(file))
            raise
        if "ckptrun_format" in header.metadata:
            raise CheckpointNotFoundError(
                f"{self._files.place(file)} is a shard file of ckptrun: only with the manifest.json of its folder does "
                "it make a checkpoint. A folder without one is no checkpoint; with one, name the folder.",
                folder=self.address,
            )
        offsets = self._offsets(header, file)
        for name, entry in header.entries.items():
            at = offsets.get(name, ()) if offsets is not None else (0,) * len(entry.shape)
            is_placed = offsets is not None
            if len(at) != len(entry.shape):
                raise self._damaged(f"{file} does not say where its chunk of {cut(name, 80)} belongs")
            self._pieces[name].append(_Piece(self._files, file, begin, entry, at, is_placed=is_placed))

    def _offsets(self, header: Header, file: str) -> dict[str, tuple[int, ...]] | None:
        """Where DCP says that the chunks of a file start in their tensors; None where it says nothing."""
        text = header.metadata.get(SHARDING)
        if text is None:
            return None
        try:
            return {name: tuple(info["saved_offsets"]) for name, info in json.loads(text).items() if _is_placed(info)}
        except (ValueError, AttributeError, RecursionError) as error:
            raise self._damaged(f"{file} has a {SHARDING} that is none ({error})") from error

    def _leaf(self, name: str) -> SourceLeaf:
        pieces = self._pieces[name]
        if len(pieces) > 1 and not any(piece.is_placed for piece in pieces):
            one, other = (self._files.place(piece.file) for piece in pieces[:2])
            raise CheckpointNotFoundError(
                f"{self.address} holds several checkpoints: {cut(name, 80)} is in {one.name} and in {other.name}. Name "
                f"the file that is meant, such as {one}.",
                folder=self.address,
            )
        if len({(piece.dtype, len(piece.sizes)) for piece in pieces}) > 1:
            raise self._damaged(f"chunks of {cut(name, 80)} have different dtypes or dims")
        # As torch's own reader does it: nothing says how large the whole is.
        ends = [[offset + size for offset, size in zip(p.offsets, p.sizes, strict=True)] for p in pieces]
        shape = tuple(map(max, zip(*ends, strict=True)))
        check_boxes(name, shape, pieces, address=self.address)
        return SourceLeaf(name=name, path=(name,), dtype=pieces[0].dtype, shape=shape)

    def _damaged(self, what: str) -> ForeignFileError:
        return ForeignFileError(f"{self.address}: {what}.", folder=self.address)


def _is_placed(info: Any) -> bool:
    offsets = info.get("saved_offsets") if isinstance(info, dict) else None
    return isinstance(offsets, list) and all(type(offset) is int and 0 <= offset < 2**63 for offset in offsets)


def _read_header(files: Files, file: str) -> tuple[Header, int]:
    """Return the header of a file, and where its data starts."""
    length = files.length(file)
    source = str(files.place(file))
    count = struct.unpack("<Q", files.bytes(file, 0, 8))[0] if length >= 8 else length
    if count > min(MAX_HEADER_BYTES, length - 8):
        raise ForeignFileError(
            f"{source} is no safetensors file, or cut: it has {length} bytes, and would have a header of {count}.",
            folder=source,
        )
    header = parse_header(files.bytes(file, 8, count), data_bytes=length - 8 - count, source=source)
    return header, 8 + count


class _Piece:
    """A tensor of a file, or the chunk that it is; see :class:`~ckptrun.formats.common.pieces.Piece`."""

    def __init__(
        self, files: Files, file: str, data_begin: int, entry: Entry, offsets: tuple[int, ...], *, is_placed: bool
    ) -> None:
        self.file = file
        self.is_placed = is_placed
        """Whether the file says where it belongs."""
        self.offsets = offsets
        self.sizes = entry.shape
        self.dtype = entry.dtype
        self.bytes = entry.bytes
        self._files = files
        self._begin = data_begin + entry.begin

    def read_rows(self, first: int, count: int) -> Tensor:
        """See ``Piece``."""
        columns = row_shape(self.sizes)[1:]
        row = math.prod(columns)
        dtype = getattr(torch, self.dtype)
        rows = self._files.elements(self.file, self._begin + first * row * dtype.itemsize, count * row, dtype)
        return rows.view(count, *columns)
