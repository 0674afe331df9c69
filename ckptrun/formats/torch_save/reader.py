"""Files of ``torch.save``: loaded with ``weights_only=True``, memory-mapped where they are local and zip archives."""

import io
import math
from collections.abc import Mapping
from typing import Any, Self, cast

from torch import Tensor

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.backends.local import LocalBackend
from ckptrun.engine.tensor_bytes import dtype_name, plain_tensor, require_storable
from ckptrun.errors import ForeignFileError, UnsupportedLeafError
from ckptrun.formats.common.files import Files, RangeFile
from ckptrun.formats.common.flatten import FlatState, flatten
from ckptrun.formats.common.interface import Origin, SourceLeaf, check_rows, row_shape
from ckptrun.formats.common.plain import PartCount, load_plain
from ckptrun.formats.torch_save.zip_records import check_archive
from ckptrun.text import joined

__all__ = ["TorchSource"]

_MAX_REPEATED_BYTES = 2**30
_LAST_PROTOCOL = 5
_ONLY_LEAF = "value"


class TorchSource:
    """See :class:`~ckptrun.formats.common.interface.Source`.

    Holds what is not memory-mapped: files that are not local, and those of ``torch.save`` before version 1.6. What is
    no dict is one leaf called ``value``.

    Args:
        place: The file.
        paths: Where the leaves are, by name; None to take the state apart as DCP does.

    Raises:
        ForeignFileError: The file cannot be trusted.
        UnsupportedLeafError: It holds objects that only unpickling could make.
    """

    format = "torch"

    def __init__(self, place: Location, paths: Mapping[str, tuple[str | int, ...]] | None = None) -> None:
        self.address = str(place)
        self.origin = Origin()
        state = _load(place)
        nested = state if isinstance(state, Mapping) else {_ONLY_LEAF: state}
        flat = flatten(nested, source=self.address) if paths is None else _follow(nested, paths, self.address)
        self.remarks = tuple(_remarks(flat))
        self._parts = PartCount()
        self._tensors: dict[str, Tensor] = {}
        self.leaves: Mapping[str, SourceLeaf] = {
            name: self._leaf(name, path, value) for name, (path, value) in flat.leaves.items()
        }
        self.shared = tuple(_shared(self._tensors))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._tensors.clear()

    def read_rows(self, name: str, first: int, count: int) -> Tensor:
        """See ``Source``."""
        check_rows(self.leaves[name], first, count)
        tensor = self._tensors[name]
        rows = (tensor if tensor.dim() else tensor[None])[first : first + count]
        return rows.resolve_conj().resolve_neg().contiguous()

    def _leaf(self, name: str, path: tuple[str | int, ...], value: Any) -> SourceLeaf:
        if not isinstance(value, Tensor):
            return SourceLeaf(name=name, path=path, dtype=None, shape=None, load=lambda: self._counted(name, value))
        require_storable(name, value.dtype, value.layout)
        tensor = plain_tensor(value, name=name)
        _require_memory(name, tensor)
        self._tensors[name] = tensor
        return SourceLeaf(name=name, path=path, dtype=dtype_name(tensor.dtype), shape=tuple(tensor.shape))

    def _counted(self, name: str, value: Any) -> Any:
        self._parts.add(value, name=name)
        return value


def _load(place: Location) -> Any:
    what = str(place)
    with Files(place.parent) as files:
        length = files.length(place.name)
        is_local = isinstance(place.backend, LocalBackend)
        stream: io.BytesIO | RangeFile = RangeFile(files, place.name, 0, length)
        if not is_local:
            stream = io.BytesIO(stream.read())
        # Before version 1.6 torch wrote pickles one after the other, which nothing can map.
        head = stream.read(2)
        is_archive = head == b"PK"
        if is_archive:
            head = check_archive(stream, length, what=what)
        _require_protocol(head, what=what)
        if is_local:
            return load_plain(place.path, what=what, mmap=is_archive)
        stream.seek(0)
        return load_plain(cast("io.BytesIO", stream), what=what)


def _require_protocol(head: bytes, *, what: str) -> None:
    """Refuse pickles that torch reads only by running what they name; ``head``: the first two bytes of the pickle."""
    if len(head) == 2 and head[0] == 0x80 and 2 < head[1] <= _LAST_PROTOCOL:
        raise UnsupportedLeafError(
            f"{what} was saved with pickle protocol {head[1]}, which can be read only in a way that runs what the file "
            "names, so it was not read. Load it where you trust it, and save it again without pickle_protocol."
        )


def _follow(state: Any, paths: Mapping[str, tuple[str | int, ...]], source: str) -> FlatState:
    flat = FlatState()
    for name, path in paths.items():
        found = state
        for element in path:
            try:
                found = found[element]
            except (LookupError, TypeError) as error:
                raise ForeignFileError(f"{source} has no leaf at {list(path)}.", folder=source) from error
        flat.leaves[name] = path, found
    return flat


def _require_memory(name: str, tensor: Tensor) -> None:
    """Refuse tensors that repeat a few bytes without end: a file of a kilobyte can hold one of a petabyte."""
    needed = math.prod(row_shape(tuple(tensor.shape))) * tensor.element_size()
    held = tensor.untyped_storage().nbytes()
    if needed > held and needed > _MAX_REPEATED_BYTES:
        raise ForeignFileError(
            f"Leaf '{name}' of shape {list(tensor.shape)} repeats the {held} bytes of its storage; more than "
            f"{_MAX_REPEATED_BYTES} bytes of such a tensor are not read."
        )


def _remarks(flat: FlatState) -> list[str]:
    remarks = []
    if flat.renamed:
        remarks.append(
            f"{len(flat.renamed):,} keys of dicts are no text and become text, as DCP does: {joined(flat.renamed)}. "
            "(--to torch numbers those of an optimizer again.)"
        )
    if flat.empty:
        remarks.append(
            f"{len(flat.empty):,} empty dicts hold no leaf and are left out, as DCP does: {joined(flat.empty)}."
        )
    return remarks


def _shared(tensors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Groups of leaves that are the same memory."""
    groups: dict[Any, list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            key = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.is_conj())
            groups.setdefault(key, []).append(name)
    return [tuple(names) for names in groups.values() if len(names) > 1]
