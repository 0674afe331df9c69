"""Values of one leaf: read, checked, and written out; of a large tensor only its edges. Must not print."""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ckptrun.elements.text import element_json, element_text
from ckptrun.engine.backends.interface import Location
from ckptrun.engine.manifest import Leaf, Manifest
from ckptrun.engine.read_chunks import BoxRead, read_boxes, torch_dtype
from ckptrun.engine.read_files import ShardFiles
from ckptrun.errors import StateMismatchError
from ckptrun.values import encode

__all__ = ["Edges", "read_edges"]

_WHOLE_ELEMENTS = 1000
# From the last dim backwards: how many items at each end are shown.
_EDGES = (3, 3, 1, 1)


@dataclass(frozen=True, slots=True)
class Edges:
    """A tensor, or what is left of it when the middle of long dims is taken out.

    Shapes:
        tensor: the dims of the leaf, the cut ones shorter.
    """

    tensor: Tensor
    cuts: tuple[int | None, ...]
    """For each dim: before which of the items that are left some are missing; None where none is."""

    def lines(self) -> list[str]:
        """Return the elements as text, those along the last dim in one line."""
        texts = [element_text(element) for element in self.tensor.reshape(-1)]
        width = max(map(len, texts), default=0)
        nested = _nested([text.rjust(width) for text in texts], self.tensor.shape)
        return _lines(nested, self.cuts, "")

    def to_json(self, name: str) -> dict[str, Any]:
        """Return the elements for ``--json``, nested; what JSON cannot say, as in the manifest."""
        values = _nested([element_json(element) for element in self.tensor.reshape(-1)], self.tensor.shape)
        return {"values": encode(values, name=name), "left_out_before": list(self.cuts)}


def _nested(items: list[Any], shape: Sequence[int]) -> Any:
    """Put row-major items into nested lists."""
    if not shape:
        return items[0]
    step = math.prod(shape[1:])
    return [_nested(items[index * step : (index + 1) * step], shape[1:]) for index in range(shape[0])]


def _lines(nested: Any, cuts: Sequence[int | None], indent: str) -> list[str]:
    if not cuts:
        return [nested]
    cut, *more = cuts
    if not more:
        items = list(nested)
        if cut is not None:
            items.insert(cut, "...")
        return [f"{indent}[{', '.join(items)}]"]
    lines = []
    for index, item in enumerate(nested):
        if index == cut:
            lines.append(f"{indent} ...")
        lines.extend(_lines(item, more, f"{indent} "))
    if len(nested) == cut:
        lines.append(f"{indent} ...")
    return [f"{indent}[", *lines, f"{indent}]"]


def read_edges(folder: Location, manifest: Manifest, leaf: Leaf) -> Edges:
    """Read a tensor leaf of the checkpoint in ``folder``; no more of it than is shown.

    Raises:
        StateMismatchError: Not all of it is in the checkpoint, or this torch does not have its dtype.
        ShardFileError: A file that it lies in is missing or damaged.
    """
    shape = leaf.shape or ()
    if not leaf.is_whole:
        raise StateMismatchError(
            f"Leaf '{leaf.name}' is only partly in {folder}: it was saved by some of its ranks.", leaves=[leaf.name]
        )
    kept = [[(0, size)] for size in shape]
    if math.prod(shape) > _WHOLE_ELEMENTS:
        kept = [_ends(size, back) for back, size in zip(range(len(shape) - 1, -1, -1), shape, strict=True)]
    tensor = torch.empty([sum(end - begin for begin, end in ranges) for ranges in kept], dtype=torch_dtype(leaf))
    with ShardFiles(folder, manifest.files) as files:
        boxes = (box for ranges in itertools.product(*kept) for box in _boxes(leaf, tensor, kept, ranges))
        read_boxes(files, boxes)
    return Edges(tensor, tuple(_cut_of(ranges, size) for ranges, size in zip(kept, shape, strict=True)))


def _ends(size: int, back: int) -> list[tuple[int, int]]:
    """Which items of a dim, the ``back``-th counted from the last, are kept."""
    edge = _EDGES[back] if back < len(_EDGES) else 0
    if size <= max(2 * edge, 1):
        return [(0, size)]
    return [(0, edge), (size - edge, size)] if edge else [(0, 1)]


def _cut_of(ranges: Sequence[tuple[int, int]], size: int) -> int | None:
    return None if ranges == [(0, size)] else ranges[0][1]


def _boxes(
    leaf: Leaf, tensor: Tensor, kept: Sequence[Sequence[tuple[int, int]]], ranges: Sequence[tuple[int, int]]
) -> Iterator[BoxRead]:
    """Yield the parts of chunks that lie in one box of the leaf, each with its place in what is kept."""
    for chunk in leaf.chunks:
        begins, place = [], []
        for dim, (begin, end) in enumerate(ranges):
            low = max(begin, chunk.offsets[dim])
            high = max(low, min(end, chunk.offsets[dim] + chunk.sizes[dim]))
            begins.append(low - chunk.offsets[dim])
            # The second of two ranges stands right behind the first.
            shift = 0 if begin == 0 else kept[dim][0][1] - begin
            place.append(slice(low + shift, high + shift))
        target = tensor[tuple(place)]
        if target.numel():
            yield BoxRead(leaf, chunk, begins, target)
