"""Reads ``.metadata`` of torch.distributed.checkpoint (DCP): a pickle, of which only the description is looked at.

The classes that such a file needs, as torch 2.1 to 2.13 write them, stand in ``_ADMITTED``; see ``pickle_machine`` for
what happens with any other.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ckptrun.errors import ForeignFileError
from ckptrun.formats.dcp.blob import TORCH_DTYPES
from ckptrun.formats.dcp.pickle_machine import Described, Named, read_pickle
from ckptrun.text import cut

__all__ = ["Metadata", "Place", "StoredTensor", "parse_metadata"]

_METADATA = "torch.distributed.checkpoint.metadata."
_FILE_SYSTEM = "torch.distributed.checkpoint.filesystem."
_OLD = "torch.distributed._shard.sharded_tensor.metadata."
_STORAGE_INFO = f"{_FILE_SYSTEM}_StorageInfo"
_SIZE = "torch.Size"
_PROPERTIES = (f"{_METADATA}TensorProperties", f"{_OLD}TensorProperties")

_ADMITTED = frozenset(
    [
        f"{_METADATA}Metadata",
        f"{_METADATA}StorageMeta",
        f"{_METADATA}MetadataIndex",
        f"{_METADATA}TensorStorageMetadata",
        f"{_METADATA}BytesStorageMetadata",
        f"{_METADATA}ChunkStorageMetadata",
        f"{_METADATA}_MEM_FORMAT_ENCODING",
        f"{_OLD}MEM_FORMAT_ENCODING",
        *_PROPERTIES,
        _STORAGE_INFO,
        _SIZE,
        "torch.serialization._get_layout",
        *TORCH_DTYPES,
        "collections.OrderedDict",
        # The folder that it was saved to, which is not looked at; Python 3.13 calls the class by another name.
        "pathlib.PosixPath",
        "pathlib.WindowsPath",
        "pathlib._local.PosixPath",
        "pathlib._local.WindowsPath",
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where ``torch.save`` wrote a chunk or a plain value."""

    file: str
    offset: int
    length: int
    transforms: tuple[str, ...]
    """What was done to its bytes, such as compression."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor leaf."""

    dtype: str
    shape: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
    """Offsets and sizes of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """What is in a checkpoint, and where."""

    leaves: Mapping[str, StoredTensor | None]
    """None for a plain value."""
    paths: Mapping[str, tuple[str | int, ...]]
    """Where the planner says what the place of a leaf in the nested state is."""
    places: Mapping[tuple[str, tuple[int, ...] | None], Place]
    """By leaf and offsets of the chunk; None as offsets of a plain value."""


class _NotInOrder(ValueError):
    """Something is not what it should be."""


def parse_metadata(raw: bytes, *, source: str) -> Metadata:
    """Read the content of a ``.metadata``; ``source`` names the file in messages.

    Raises:
        ForeignFileError: It is damaged, or asks for a class that no such file needs; names the class.
    """
    described = read_pickle(raw, _ADMITTED, source=source)
    try:
        fields = _fields(described, f"{_METADATA}Metadata")
        leaves = {_text(name): _stored(stored) for name, stored in _dict(fields.get("state_dict_metadata")).items()}
        places = dict(map(_located, _dict(fields.get("storage_data")).items()))
    except _NotInOrder as error:
        raise ForeignFileError(f"{source} is damaged: {error}.", folder=source) from error
    return Metadata(leaves=leaves, paths=_paths(fields.get("planner_data")), places=places)


def _fields(value: Any, *classes: str) -> dict[Any, Any]:
    if not isinstance(value, Described) or value.of not in classes or not isinstance(value.state, dict | None):
        raise _NotInOrder(f"where a {classes[0]} should be there is {_shown(value)}")
    return value.state or {}


def _shown(value: Any) -> str:
    return cut(value.of, 80) if isinstance(value, Described) else f"a {type(value).__name__}"


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise _NotInOrder(f"where a dict should be there is {_shown(value)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise _NotInOrder(f"where a name should be there is {_shown(value)}")
    return value


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise _NotInOrder("a size or offset is no count")
    return value


def _size(value: Any) -> tuple[int, ...]:
    items = value.args[0] if isinstance(value, Described) and value.of == _SIZE and len(value.args) == 1 else None
    if not isinstance(items, tuple | list):
        raise _NotInOrder(f"where a torch.Size should be there is {_shown(value)}")
    return tuple(map(_count, items))


def _stored(value: Any) -> StoredTensor | None:
    if isinstance(value, Described) and value.of == f"{_METADATA}BytesStorageMetadata":
        return None
    fields = _fields(value, f"{_METADATA}TensorStorageMetadata")
    chunks = fields.get("chunks")
    if not isinstance(chunks, list):
        raise _NotInOrder("a tensor has no chunks")
    return StoredTensor(
        dtype=_dtype(fields.get("properties")),
        shape=_size(fields.get("size")),
        chunks=tuple(map(_chunk, chunks)),
    )


def _dtype(properties: Any) -> str:
    # A tuple, because torch.memory_format cannot be pickled; the dtype comes first.
    state = properties.state if isinstance(properties, Described) and properties.of in _PROPERTIES else None
    if (
        not isinstance(state, tuple)
        or not state
        or not isinstance(state[0], Named)
        or state[0].name not in TORCH_DTYPES
    ):
        raise _NotInOrder("a tensor has no dtype")
    return TORCH_DTYPES[state[0].name]


def _chunk(value: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    fields = _fields(value, f"{_METADATA}ChunkStorageMetadata")
    return _size(fields.get("offsets")), _size(fields.get("sizes"))


def _located(item: tuple[Any, Any]) -> tuple[tuple[str, tuple[int, ...] | None], Place]:
    index, info = _fields(item[0], f"{_METADATA}MetadataIndex"), _fields(item[1], _STORAGE_INFO)
    offset = index.get("offset")
    transforms = info.get("transform_descriptors") or []
    if not isinstance(transforms, list | tuple):
        raise _NotInOrder("transform_descriptors are no list")
    place = Place(
        file=_text(info.get("relative_path")),
        offset=_count(info.get("offset")),
        length=_count(info.get("length")),
        transforms=tuple(map(_text, transforms)),
    )
    return (_text(index.get("fqn")), None if offset is None else _size(offset)), place


def _paths(planner_data: Any) -> dict[str, tuple[str | int, ...]]:
    """What DefaultSavePlanner leaves there; another planner may have left anything."""
    if not isinstance(planner_data, dict):
        return {}
    return {name: path for name, path in planner_data.items() if isinstance(name, str) and _is_path(path)}


def _is_path(path: Any) -> bool:
    # A list is rebuilt by its indices, so a huge one would cost memory for nothing.
    return (
        isinstance(path, tuple)
        and len(path) > 0
        and all(type(element) is str or (type(element) is int and 0 <= element < 2**20) for element in path)
    )
