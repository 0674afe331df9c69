"""Reads boxes of leaves from the shard files of one checkpoint into tensors, checked on the way.

Reads the byte range from the first to the last element of a box, and so much more as checksums need; into the target
itself where its memory is laid out like the file, through a buffer as large as the range otherwise. Must not know
planners or ranks.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ckptrun.checkpoint.backend import Location
from ckptrun.checkpoint.dtypes import item_bytes
from ckptrun.checkpoint.geometry import row_major_strides, span_of
from ckptrun.checkpoint.manifest import Chunk, Leaf, Manifest
from ckptrun.checkpoint.shard_file import check_file, read_checked
from ckptrun.checkpoint.tensor_bytes import writable_bytes
from ckptrun.errors import InternalError, StateMismatchError

__all__ = ["check_files", "read_box", "read_whole", "torch_dtype"]


def torch_dtype(leaf: Leaf) -> torch.dtype:
    """Return the dtype of a tensor leaf.

    Raises:
        StateMismatchError: This torch does not have it.
    """
    dtype = getattr(torch, str(leaf.dtype), None)
    if not isinstance(dtype, torch.dtype):
        raise StateMismatchError(
            f"Leaf '{leaf.name}' has dtype {leaf.dtype}, which torch {torch.__version__} does not have.",
            leaves=[leaf.name],
        )
    return dtype


def check_files(folder: Location, manifest: Manifest, chunks: Iterable[tuple[str, Chunk]]) -> None:
    """Check length and header of every file that holds one of ``chunks`` (leaf name, chunk).

    Raises:
        ShardFileError: The first that is not as the manifest says.
    """
    first_leaf: dict[str, str] = {}
    for name, chunk in chunks:
        first_leaf.setdefault(chunk.file, name)
    for file, name in sorted(first_leaf.items()):
        check_file(folder, manifest.files[file], leaf=name)


def read_box(folder: Location, leaf: Leaf, chunk: Chunk, offsets: Sequence[int], target: Tensor) -> None:
    """Fill ``target`` with the box of its shape at ``offsets`` in ``chunk``.

    Shapes:
        target: any device and layout, of the dtype of ``leaf``.

    Raises:
        ShardFileError: See :func:`~ckptrun.checkpoint.shard_file.read_checked`.
    """
    if not target.numel():
        return
    if target.dtype is not torch_dtype(leaf):
        raise InternalError(f"Leaf '{leaf.name}' has dtype {leaf.dtype} and cannot be read into {target.dtype}.")
    span = span_of(chunk.sizes, offsets, target.shape)
    item = item_bytes(str(leaf.dtype))
    memory = writable_bytes(target) if span.is_dense else None
    if memory is not None:
        read_checked(folder, leaf.name, chunk, span.begin * item, memory)
        return
    scratch = torch.empty(span.count, dtype=target.dtype)
    scratch_memory = writable_bytes(scratch)
    if scratch_memory is None:
        raise InternalError(f"A fresh tensor of {target.dtype} has no memory to read into.")
    read_checked(folder, leaf.name, chunk, span.begin * item, scratch_memory)
    with torch.no_grad():
        target.copy_(scratch.as_strided(target.shape, row_major_strides(chunk.sizes)))


def read_whole(folder: Location, leaf: Leaf) -> Tensor:
    """Return the full tensor of a leaf, in host memory. Files must have been checked.

    Raises:
        StateMismatchError: Not all of it is in the checkpoint.
        ShardFileError: See :func:`read_box`.
    """
    if leaf.shape is None or not leaf.is_whole:
        raise StateMismatchError(
            f"Leaf '{leaf.name}' is only partly in {folder}: it was saved by some of its ranks.",
            leaves=[leaf.name],
            folder=str(folder),
        )
    tensor = torch.empty(leaf.shape, dtype=torch_dtype(leaf))
    for chunk in leaf.chunks:
        box = tuple(slice(offset, offset + size) for offset, size in zip(chunk.offsets, chunk.sizes, strict=True))
        read_box(folder, leaf, chunk, [0] * len(chunk.sizes), tensor[box])
    return tensor
