"""Reads boxes of leaves from the shard files of one checkpoint into tensors of any device and layout.

Straight into the target where its memory is laid out like the file; through a bounded buffer otherwise. Must not know
planners or ranks.
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ckptrun.engine.geometry import row_major_strides, span_of
from ckptrun.engine.manifest import Chunk, Leaf
from ckptrun.engine.read_files import Range, ShardFiles
from ckptrun.engine.tensor_bytes import writable_bytes
from ckptrun.errors import InternalError, StateMismatchError

__all__ = ["BoxRead", "read_box", "read_boxes", "read_whole", "torch_dtype"]

_BUFFER_BYTES = 32 * 2**20
_LONG_RUN_BLOCKS = 32


@dataclass(slots=True)
class BoxRead:
    """A part of a chunk, and the tensor that it goes to.

    Shapes:
        target: any device and layout, of the dtype of ``leaf``; its shape is that of the box.
    """

    leaf: Leaf
    chunk: Chunk
    offsets: Sequence[int]
    """Where it starts in the chunk."""
    target: Tensor


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


def read_boxes(files: ShardFiles, boxes: Iterable[BoxRead]) -> None:
    """Fill the target of each box; return when all are filled and checked.

    Raises:
        ShardFileError: See :meth:`~ckptrun.engine.read_files.ShardFiles.read`.
    """
    straight: list[Range] = []
    buffered: list[BoxRead] = []
    for box in boxes:
        if not box.target.numel():
            continue
        if box.target.dtype is not torch_dtype(box.leaf):
            raise InternalError(f"Leaf '{box.leaf.name}' has dtype {box.leaf.dtype}, not {box.target.dtype}.")
        wanted = _straight(box)
        if wanted is not None:
            straight.append(wanted)
        else:
            buffered.append(box)
    parts = itertools.chain.from_iterable(map(_split, buffered))
    waiting: list[BoxRead] = []
    held = 0
    for part in parts:
        wanted = _straight(part)
        if wanted is not None:
            straight.append(wanted)
            continue
        waiting.append(part)
        held += _span_bytes(part)
        if held >= _BUFFER_BYTES:
            _read_through_buffers(files, waiting)
            waiting, held = [], 0
    _read_through_buffers(files, waiting)
    files.read(straight)


def _straight(box: BoxRead) -> Range | None:
    """The range that fills the target itself; None where file and memory are not laid out alike."""
    chunk, target = box.chunk, box.target
    if tuple(target.shape) == chunk.sizes:
        begin = 0
    else:
        span = span_of(chunk.sizes, box.offsets, target.shape)
        if not span.is_dense:
            return None
        begin = span.begin * target.element_size()
    memory = writable_bytes(target)
    return None if memory is None else Range(box.leaf.name, chunk, begin, memory)


def _span_bytes(box: BoxRead) -> int:
    return span_of(box.chunk.sizes, box.offsets, box.target.shape).count * box.target.element_size()


def _split(box: BoxRead) -> Iterator[BoxRead]:
    """Cut a box into parts that fit the buffer, and into long runs of bytes where it is made of such."""
    shape = box.target.shape
    dim = next((dim for dim, size in enumerate(shape) if size > 1), None)
    if dim is None:
        yield box
        return
    row_bytes = _span_bytes(_part(box, dim, 0, 1))
    gap_bytes = row_major_strides(box.chunk.sizes)[dim] * box.target.element_size() - row_bytes
    runs = gap_bytes and row_bytes >= _LONG_RUN_BLOCKS * box.chunk.block_bytes
    if not runs and _span_bytes(box) <= _BUFFER_BYTES:
        yield box
        return
    rows = 1 if runs else max(1, _BUFFER_BYTES // (row_bytes + gap_bytes))
    for first in range(0, shape[dim], rows):
        part = _part(box, dim, first, min(rows, shape[dim] - first))
        if rows == 1:
            yield from _split(part)
        else:
            yield part


def _part(box: BoxRead, dim: int, first: int, count: int) -> BoxRead:
    offsets = list(box.offsets)
    offsets[dim] += first
    return BoxRead(box.leaf, box.chunk, offsets, box.target.narrow(dim, first, count))


def _read_through_buffers(files: ShardFiles, boxes: Sequence[BoxRead]) -> None:
    ranges: list[Range] = []
    buffers: list[Tensor] = []
    for box in boxes:
        span = span_of(box.chunk.sizes, box.offsets, box.target.shape)
        buffer = torch.empty(span.count, dtype=box.target.dtype)
        memory = writable_bytes(buffer)
        if memory is None:
            raise InternalError(f"A fresh tensor of {buffer.dtype} has no memory to read into.")
        ranges.append(Range(box.leaf.name, box.chunk, span.begin * buffer.element_size(), memory))
        buffers.append(buffer)
    files.read(ranges)
    with torch.no_grad():
        for box, buffer in zip(boxes, buffers, strict=True):
            box.target.copy_(buffer.as_strided(box.target.shape, row_major_strides(box.chunk.sizes)))


def read_whole(files: ShardFiles, leaf: Leaf) -> Tensor:
    """Return the full tensor of a leaf, in host memory.

    Raises:
        StateMismatchError: Not all of it is in the checkpoint.
        ShardFileError: See :func:`read_boxes`.
    """
    shape = leaf.shape or ()
    return read_box(files, leaf, (0,) * len(shape), shape)


def read_box(files: ShardFiles, leaf: Leaf, offsets: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Return the elements in a box of a tensor leaf, whatever chunks they lie in, in host memory.

    Shapes:
        returns: ``sizes``

    Raises:
        StateMismatchError: Not all of the leaf is in the checkpoint, or this torch does not have its dtype.
        ShardFileError: See :func:`read_boxes`.
    """
    if leaf.shape is None or not leaf.is_whole:
        raise StateMismatchError(
            f"Leaf '{leaf.name}' is only partly in {files.folder}: it was saved by some of its ranks.",
            leaves=[leaf.name],
        )
    # Nothing is allocated for a shape that no file can fill.
    for name in {chunk.file for chunk in leaf.chunks}:
        files.check(name, leaf=leaf.name)
    target = torch.empty(tuple(sizes), dtype=torch_dtype(leaf))
    read_boxes(files, [_meeting(leaf, chunk, target, offsets) for chunk in leaf.chunks])
    return target


def _meeting(leaf: Leaf, chunk: Chunk, target: Tensor, offsets: Sequence[int]) -> BoxRead:
    """The part of a chunk that lies in a box of the leaf; its target is empty where none does."""
    begins, places = [], []
    for offset, size, chunk_offset, chunk_size in zip(offsets, target.shape, chunk.offsets, chunk.sizes, strict=True):
        begin = max(offset, chunk_offset)
        end = max(begin, min(offset + size, chunk_offset + chunk_size))
        begins.append(begin - chunk_offset)
        places.append(slice(begin - offset, end - offset))
    return BoxRead(leaf, chunk, begins, target[tuple(places)])
