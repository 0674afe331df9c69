"""Which files of a folder make up one checkpoint, and which of them are missing: from indexes, and from names.

An index, ``<anything>.index<anything>.json``, maps tensors to files (``weight_map``), as Hugging Face tools write it
for safetensors and for torch.save. A name such as ``model-00001-of-00002`` promises a count. Both are promises to
check: what is missing would make half a model that looks like a whole one. Must not open shards.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ckptrun.engine.backends.interface import Location
from ckptrun.errors import CheckpointNotFoundError, ForeignFileError
from ckptrun.formats.common.files import Files
from ckptrun.formats.common.part_names import is_index_name, missing_by_name, part_of
from ckptrun.text import counted, cut, joined

__all__ = ["Index", "ShardSet", "check_promises", "remark_of_part", "settled", "shard_set"]

_MAX_INDEX_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Index:
    """What an index says."""

    name: str
    files: Mapping[str, str]
    """Tensor -> file."""
    total_size: int | None
    """The bytes of all tensors, where it says so."""


@dataclass(slots=True, kw_only=True)
class ShardSet:
    """The files of one checkpoint."""

    files: list[str]
    """Those that are there, sorted."""
    indexes: tuple[Index, ...] = ()
    missing: list[str] = field(default_factory=list)
    """Sentences on what is not there."""
    remarks: list[str] = field(default_factory=list)

    @property
    def mapped(self) -> dict[str, str] | None:
        """Tensor -> file over all indexes; None where there is none."""
        return {name: file for index in self.indexes for name, file in index.files.items()} if self.indexes else None


def shard_set(
    files: Files, names: Sequence[str], *, suffixes: tuple[str, ...], only_index: str | None = None
) -> ShardSet:
    """Choose from the ``names`` in a folder.

    Args:
        files: Of the folder.
        names: All that lies in it.
        suffixes: Of the format.
        only_index: The index that was asked for; None for all.

    Raises:
        ForeignFileError: An index is none, or names files outside the folder.
        CheckpointNotFoundError: There are indexes of several checkpoints.
    """
    wanted = [only_index] if only_index is not None else [name for name in names if is_index_name(name)]
    indexes = tuple(index for name in wanted if (index := _read_index(files, name, suffixes)) is not None)
    shards = [name for name in names if name.endswith(suffixes)]
    if not indexes:
        return ShardSet(files=shards, missing=[*missing_by_name(shards)])
    _require_one_checkpoint(files, indexes)
    named = sorted({file for index in indexes for file in index.files.values()})
    there = set(names)
    found = ShardSet(files=[name for name in named if name in there], indexes=indexes)
    for index in indexes:
        gone = sorted(set(index.files.values()) - there)
        if gone:
            lost = sum(file in set(gone) for file in index.files.values())
            found.missing.append(
                f"{index.name} names {joined(gone)}, which {'is' if len(gone) == 1 else 'are'} missing, with "
                f"{lost:,} of {counted(len(index.files), 'tensor')}"
            )
    found.missing.extend(missing_by_name([*named, *shards], only_of=set(named)))
    left = [name for name in shards if name not in named]
    if left:
        found.remarks.append(f"{joined([index.name for index in indexes])} does not name {joined(left)}: not read.")
    return found


def _read_index(files: Files, name: str, suffixes: tuple[str, ...]) -> Index | None:
    """None for one of another format's files, or of something else."""
    length = files.length(name)
    source = str(files.place(name))
    if length > _MAX_INDEX_BYTES:
        raise ForeignFileError(f"{source} has {length} bytes; at most {_MAX_INDEX_BYTES} are read.", folder=source)
    try:
        index = json.loads(files.bytes(name, 0, length))
    except (ValueError, RecursionError) as error:
        raise ForeignFileError(f"{source} is no JSON ({error}).", folder=source) from error
    found = index.get("weight_map") if isinstance(index, dict) else None
    if found is None and not any(f"{suffix}.index" in name for suffix in suffixes):
        return None
    if not isinstance(found, dict) or not all(isinstance(file, str) for file in found.values()):
        raise ForeignFileError(f"{source} has no weight_map of text to text.", folder=source)
    if found and not any(file.endswith(suffixes) for file in found.values()):
        return None
    for file in set(found.values()):
        # Checks that it lies in this folder.
        files.place(file)
    metadata = index.get("metadata")
    size = metadata.get("total_size") if isinstance(metadata, dict) else None
    # Some tools count bits of a byte, and so write a float.
    is_size = isinstance(size, int | float) and not isinstance(size, bool) and 0 <= size < 2**63
    return Index(name=name, files=found, total_size=int(size) if is_size and size is not None else None)


def _require_one_checkpoint(files: Files, indexes: Sequence[Index]) -> None:
    known: dict[str, tuple[str, str]] = {}
    for index in indexes:
        for name, file in index.files.items():
            other, other_index = known.setdefault(name, (file, index.name))
            if other != file:
                place = files.place(index.name)
                raise CheckpointNotFoundError(
                    f"{place.parent} holds several checkpoints: {other_index} says that {cut(name, 80)} is in {other}, "
                    f"and {index.name} that it is in {file}. Name the index of the one that is meant, such as {place}.",
                    folder=str(place.parent),
                )


def check_promises(found: ShardSet, held: Mapping[str, set[str]], size: int) -> None:
    """Compare what the indexes say with the tensors that are there; add to ``missing`` and ``remarks``.

    Args:
        found: Of the folder.
        held: Tensor -> the files that it is in.
        size: The bytes of all tensors.

    Raises:
        ForeignFileError: The files hold what the indexes do not name.
    """
    mapped = found.mapped
    if mapped is None:
        return
    names = joined([index.name for index in found.indexes])
    there = set(found.files)
    wrong = [(name, file) for name, file in mapped.items() if file in there and file not in held.get(name, ())]
    if wrong:
        (name, file), more = wrong[0], f", and {len(wrong) - 1:,} more" if len(wrong) > 1 else ""
        found.missing.append(f"{names} says that {cut(name, 80)} is in {file}, where it is not{more}")
    unnamed = [name for name in held if name not in mapped]
    if unnamed:
        found.missing.append(
            f"{names} does not name {joined([cut(name, 80) for name in unnamed])}, which the files that it names hold: "
            "it is of other files, or cut"
        )
    sizes = [index.total_size for index in found.indexes]
    said = sum(size or 0 for size in sizes)
    if found.missing or None in sizes or said == size:
        return
    if said > size:
        found.missing.append(f"{names} says that all tensors have {said:,} bytes (total_size), and {size:,} are there")
    else:
        found.remarks.append(
            f"{names} says that all tensors have {said:,} bytes (total_size), and there are {size:,}, which is more."
        )


def settled(found: ShardSet, *, address: str, incomplete: bool) -> tuple[str, ...]:
    """Return what is to be said of a folder that is read.

    Raises:
        ForeignFileError: Something is missing, and that was not allowed.
    """
    if found.missing and not incomplete:
        raise ForeignFileError(
            f"{address} is not whole: {'; '.join(found.missing)}. Nothing was written or compared. Fetch what is "
            "missing; or pass --incomplete to go on with what is there.",
            folder=address,
        )
    return (*(f"NOT WHOLE: {text}." for text in found.missing), *found.remarks)


def remark_of_part(place: Location) -> list[str]:
    """Return what is to be said of a single file that was named and is a part of a checkpoint, by its name."""
    part = part_of(place.name)
    if part is None:
        return []
    return [f"By its name {place.name} is one of {part[1]} parts; name {place.parent} for all of them."]
