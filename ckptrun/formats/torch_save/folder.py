"""A folder in which the files of ``torch.save`` are parts of one state, as older Hugging Face tools write it."""

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Self

from torch import Tensor

from ckptrun.engine.backends.interface import Location
from ckptrun.errors import CheckpointNotFoundError
from ckptrun.formats.common.file_kind import require_kind
from ckptrun.formats.common.files import Files
from ckptrun.formats.common.interface import Origin, SourceLeaf
from ckptrun.formats.common.part_names import TORCH_SUFFIXES, is_index_name, series_of
from ckptrun.formats.common.shard_set import ShardSet, check_promises, settled, shard_set
from ckptrun.formats.torch_save.reader import TorchSource
from ckptrun.text import cut

__all__ = ["TorchFolderSource", "is_shard_folder"]


def is_shard_folder(place: Location, names: list[str]) -> bool:
    """Whether the files of torch.save in a folder are one checkpoint, by an index or by their names."""
    with Files(place) as files:
        found = shard_set(files, names, suffixes=TORCH_SUFFIXES)
    return bool(found.indexes) or bool(_parts(found))


def _parts(found: ShardSet) -> list[str]:
    """The files whose names count, where all that count are of one series."""
    counted = [name for name in found.files if series_of(name) is not None]
    return counted if len({series_of(name) for name in counted}) == 1 else []


class TorchFolderSource:
    """See :class:`~ckptrun.formats.common.interface.Source`.

    Args:
        place: A folder, or an index in it, where there are several.
        incomplete: Whether to go on with what is there where files or tensors are missing.

    Raises:
        ForeignFileError: A file cannot be trusted, or is missing.
        CheckpointNotFoundError: Two files hold the same leaf: they are several checkpoints.
    """

    format = "torch"

    def __init__(self, place: Location, *, incomplete: bool = False) -> None:
        self.address = str(place)
        self.origin = Origin()
        only_index = place.name if is_index_name(place.name) else None
        folder = place.parent if only_index is not None else place
        names = folder.backend.list_names(folder.path)
        with Files(folder) as files:
            found = shard_set(files, names, suffixes=TORCH_SUFFIXES, only_index=only_index)
        if not found.indexes:
            left = [name for name in found.files if name not in _parts(found)]
            found.files = _parts(found)
            if left:
                found.remarks.append(f"No part of it by their names, so not read: {', '.join(left)}.")
        self._open = ExitStack()
        self._sources = {name: self._open.enter_context(_open(folder.child(name))) for name in found.files}
        self._source_of: dict[str, TorchSource] = {}
        for file, source in self._sources.items():
            self._add(file, source)
        held = {name: {file} for file, source in self._sources.items() for name in source.leaves}
        check_promises(
            found, held, sum(leaf.bytes for source in self._sources.values() for leaf in source.leaves.values())
        )
        self.remarks: tuple[str, ...] = (
            *settled(found, address=self.address, incomplete=incomplete),
            *(remark for source in self._sources.values() for remark in source.remarks),
        )
        ordered = dict.fromkeys([name for name in found.mapped or () if name in self._source_of])
        self.leaves: Mapping[str, SourceLeaf] = {
            name: self._source_of[name].leaves[name] for name in (ordered | dict.fromkeys(self._source_of))
        }
        self.shared = tuple(group for source in self._sources.values() for group in source.shared)

    def _add(self, file: str, source: TorchSource) -> None:
        for name in source.leaves:
            if name in self._source_of:
                other = next(key for key, value in self._sources.items() if value is self._source_of[name])
                raise CheckpointNotFoundError(
                    f"{self.address} holds several checkpoints, or parts cut out of tensors: {cut(name, 80)} is in "
                    f"{other} and in {file}, and nothing says how they belong together. Name one file.",
                    folder=self.address,
                )
            self._source_of[name] = source

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def read_rows(self, name: str, first: int, count: int) -> Tensor:
        """See ``Source``."""
        return self._source_of[name].read_rows(name, first, count)


def _open(file: Location) -> TorchSource:
    require_kind(file)
    return TorchSource(file)
