"""Folders of torch.distributed.checkpoint (DCP): ``.metadata``, and files in which ``torch.save`` wrote each chunk."""

import functools
import io
import math
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.dtypes import item_bytes
from ckptrun.engine.tensor_bytes import dtype_name
from ckptrun.errors import ForeignFileError
from ckptrun.formats.common.files import Files
from ckptrun.formats.common.interface import Origin, SourceLeaf
from ckptrun.formats.common.pieces import check_boxes, read_rows
from ckptrun.formats.common.plain import PartCount, load_plain
from ckptrun.formats.dcp.blob import BlobReader, TensorBlob, find_tensor
from ckptrun.formats.dcp.metadata import Metadata, Place, StoredTensor, parse_metadata
from ckptrun.formats.torch_save.zip_records import check_archive

__all__ = ["DcpSource"]

_METADATA = ".metadata"
_MAX_METADATA_BYTES = 256 * 2**20
_MAX_VALUE_BYTES = 256 * 2**20


class DcpSource:
    """See :class:`~ckptrun.formats.common.interface.Source`.

    Raises:
        ForeignFileError: The folder cannot be trusted.
    """

    format = "dcp"

    def __init__(self, folder: Location) -> None:
        self.address = str(folder)
        self.shared: tuple[tuple[str, ...], ...] = ()
        self.origin = Origin()
        self.remarks: tuple[str, ...] = ()
        self._files = Files(folder)
        with self._files:
            metadata = self._read_metadata()
        self._metadata = metadata
        self._parts = PartCount()
        self._blobs = BlobReader(self._files)
        self._pieces: dict[str, list[_DcpPiece]] = {}
        self.leaves: Mapping[str, SourceLeaf] = {
            name: self._leaf(name, stored, metadata.paths.get(name, (name,)))
            for name, stored in metadata.leaves.items()
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.__exit__()

    def read_rows(self, name: str, first: int, count: int) -> Tensor:
        """See ``Source``."""
        return read_rows(self.leaves[name], self._pieces[name], first, count, address=self.address)

    def _read_metadata(self) -> Metadata:
        length = self._files.length(_METADATA)
        if length > _MAX_METADATA_BYTES:
            raise self._damaged(f"{_METADATA} has {length} bytes; at most {_MAX_METADATA_BYTES} are read")
        return parse_metadata(self._files.bytes(_METADATA, 0, length), source=str(self._files.place(_METADATA)))

    def _leaf(self, name: str, stored: StoredTensor | None, path: tuple[str | int, ...]) -> SourceLeaf:
        if stored is None:
            return SourceLeaf(name=name, path=path, dtype=None, shape=None, load=lambda: self._load_value(name))
        pieces = [
            _DcpPiece(self._files, self._blobs, name, stored.dtype, box, self._place(name, box[0]))
            for box in stored.chunks
        ]
        check_boxes(name, stored.shape, pieces, address=self.address)
        for piece in pieces:
            piece.check_length()
        self._pieces[name] = pieces
        return SourceLeaf(name=name, path=path, dtype=stored.dtype, shape=stored.shape)

    def _place(self, name: str, offsets: tuple[int, ...] | None) -> Place:
        place = self._metadata.places.get((name, offsets))
        if place is None:
            raise self._damaged(f"{_METADATA} does not say where leaf '{name}' is")
        if place.transforms:
            raise self._damaged(
                f"leaf '{name}' went through {', '.join(place.transforms)} when it was saved, which is not undone "
                "here. Load it with DCP, and save it without extensions"
            )
        return place

    def _load_value(self, name: str) -> Any:
        place = self._place(name, None)
        if place.length > _MAX_VALUE_BYTES:
            raise self._damaged(f"the plain value '{name}' has {place.length} bytes")
        what = f"Leaf '{name}' of {self.address}"
        stream = io.BytesIO(self._files.bytes(place.file, place.offset, place.length))
        check_archive(stream, place.length, what=what)
        stream.seek(0)
        value = load_plain(stream, what=what)
        self._parts.add(value, name=name)
        return value

    def _damaged(self, what: str) -> ForeignFileError:
        return ForeignFileError(f"{self.address}: {what}.", folder=self.address)


class _DcpPiece:
    """A chunk; see :class:`~ckptrun.formats.common.pieces.Piece`."""

    def __init__(
        self,
        files: Files,
        blobs: BlobReader,
        leaf: str,
        dtype: str,
        box: tuple[tuple[int, ...], tuple[int, ...]],
        place: Place,
    ) -> None:
        self.offsets, self.sizes = box
        self._files = files
        self._blobs = blobs
        self._leaf = leaf
        self._dtype = dtype
        self._place = place

    def check_length(self) -> None:
        """Check that the elements fit into the bytes, before anything is allocated for them."""
        if math.prod(self.sizes) * item_bytes(self._dtype) > self._place.length:
            raise self._damaged(f"has only {self._place.length} bytes")

    def read_rows(self, first: int, count: int) -> Tensor:
        """See ``Piece``."""
        return self._blobs.read_rows(self._blob, first, count)

    @functools.cached_property
    def _blob(self) -> TensorBlob:
        blob = find_tensor(self._files, self._place.file, self._place.offset, self._place.length)
        if (dtype_name(blob.dtype), blob.shape) != (self._dtype, self.sizes):
            raise self._damaged(f"is {dtype_name(blob.dtype)} of shape {list(blob.shape)} there")
        return blob

    def _damaged(self, what: str) -> ForeignFileError:
        return ForeignFileError(
            f"{self._files.place(self._place.file)}: the chunk of leaf '{self._leaf}' at byte {self._place.offset}, "
            f"{self._dtype} of shape {list(self.sizes)}, {what}."
        )
