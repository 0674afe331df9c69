"""Checkpoints of ckptrun: every byte that is handed out is checked against the manifest."""

from collections.abc import Mapping
from typing import Self

from torch import Tensor

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.manifest import Leaf, Manifest, read_manifest
from ckptrun.engine.read_chunks import read_box
from ckptrun.engine.read_files import ShardFiles
from ckptrun.formats.common.interface import Origin, SourceLeaf, check_rows

__all__ = ["CkptrunSource"]


class CkptrunSource:
    """See :class:`~ckptrun.formats.common.interface.Source`.

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
        check_rows(self.leaves[name], first, count)
        shape = leaf.shape or ()
        if not shape:
            return read_box(self._files, leaf, (), ()).view(1)[:count]
        return read_box(self._files, leaf, (first, *[0] * len(shape[1:])), (count, *shape[1:]))


def _to_source(leaf: Leaf) -> SourceLeaf:
    return SourceLeaf(
        name=leaf.name,
        path=leaf.path,
        dtype=leaf.dtype,
        shape=leaf.shape,
        load=lambda: leaf.value,
        digest=leaf.digest,
    )
