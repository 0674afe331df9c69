"""Checkpoints of ckptrun: every byte that is handed out is checked against the manifest."""

from collections.abc import Mapping
from typing import Self

import torch
from torch import Tensor

from ckptrun.checkpoint.backend import Location
from ckptrun.checkpoint.manifest import Chunk, Leaf, Manifest, read_manifest
from ckptrun.checkpoint.read_chunks import Box, read_boxes
from ckptrun.checkpoint.read_files import ShardFiles
from ckptrun.errors import StateMismatchError
from ckptrun.tools.sources.interface import Origin, SourceLeaf, check_rows, row_shape

__all__ = ["CkptrunSource"]


class CkptrunSource:
    """See :class:`~ckptrun.tools.sources.interface.Source`.

    Args:
        folder: The checkpoint.
        manifest: What the folder holds, where it has no manifest yet: a save before its commit.

    Raises:
        ManifestError: The manifest cannot be trusted.
    """

    format = "ckptrun"

    def __init__(self, folder: Location, manifest: Manifest | None = None) -> None:
        manifest = read_manifest(folder) if manifest is None else manifest
        self.address = str(folder)
        self.leaves: Mapping[str, SourceLeaf] = {leaf.name: _to_source(leaf) for leaf in manifest.leaves.values()}
        self.shared = manifest.shared
        self.origin = Origin(run=manifest.run, world_size=manifest.world_size)
        self.remarks: tuple[str, ...] = ()
        self._manifest = manifest
        self._files = ShardFiles(folder, manifest.files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.__exit__()

    def read_rows(self, name: str, first: int, count: int) -> Tensor:
        """See ``Source``."""
        leaf = self._manifest.leaves[name]
        dtype = check_rows(self.leaves[name], first, count)
        if not leaf.is_whole:
            raise StateMismatchError(
                f"Leaf '{name}' is only partly in {self.address}: it was saved by some of its ranks.", leaves=[name]
            )
        # Nothing is allocated for a shape that no file can fill.
        for file in {chunk.file for chunk in leaf.chunks}:
            self._files.check(file, leaf=name)
        slab = torch.empty((count, *row_shape(leaf.shape or ())[1:]), dtype=dtype)
        boxes = [_box(leaf, chunk, slab, first) for chunk in leaf.chunks]
        read_boxes(self._files, [box for box in boxes if box.target.numel()])
        return slab


def _to_source(leaf: Leaf) -> SourceLeaf:
    return SourceLeaf(
        name=leaf.name,
        path=leaf.path,
        dtype=leaf.dtype,
        shape=leaf.shape,
        load=lambda: leaf.value,
        digest=leaf.digest,
    )


def _box(leaf: Leaf, chunk: Chunk, slab: Tensor, first: int) -> Box:
    """The part of a chunk that lies in a slab of rows from ``first`` on; empty where none does."""
    if not chunk.sizes:
        return Box(leaf, chunk, (), slab[0] if slab.shape[0] else slab)
    begin = max(first, chunk.offsets[0])
    end = max(begin, min(first + slab.shape[0], chunk.offsets[0] + chunk.sizes[0]))
    columns = [slice(offset, offset + size) for offset, size in zip(chunk.offsets[1:], chunk.sizes[1:], strict=True)]
    target = slab[(slice(begin - first, end - first), *columns)]
    return Box(leaf, chunk, [begin - chunk.offsets[0], *[0] * len(columns)], target)
