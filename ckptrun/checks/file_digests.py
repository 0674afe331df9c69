"""Digests of the leaves of a checkpoint, made anew from its files: every byte is read, and none is believed.

Memory is bounded, however large the leaves are. Needs no process group.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch

from ckptrun.digest import Sums, digest_leaves, finish
from ckptrun.digest.tally import Tally
from ckptrun.engine.geometry import dense_boxes
from ckptrun.engine.manifest import Leaf, Manifest
from ckptrun.engine.read_chunks import BoxRead, read_boxes, torch_dtype
from ckptrun.engine.read_files import ShardFiles

__all__ = ["digests_of_files"]

_BATCH_BYTES = 16 * 2**20


def digests_of_files(files: ShardFiles, manifest: Manifest) -> Mapping[str, str]:
    """Return leaf name -> digest of what the files hold.

    Leaves of which not every element is stored have no digest, and are left out.

    Args:
        files: Those of the checkpoint.
        manifest: Of the checkpoint.

    Raises:
        ShardFileError: A file is missing or damaged.
        StateMismatchError: This torch does not have the dtype of a leaf.
    """
    whole = [leaf for leaf in manifest.leaves.values() if leaf.is_whole]
    tensors = [leaf for leaf in whole if leaf.is_tensor]
    # One for all leaves: what a tally costs beside its sums would be most of it where leaves are small and many.
    tally = Tally(len(tensors))
    parts = (part for number, leaf in enumerate(tensors) for part in _parts_of(number, leaf))
    with torch.no_grad():
        for batch in _batches(parts):
            read_boxes(files, [part.box for part in batch])
            for part in batch:
                tally.add(part.number, part.box.target, offsets=part.offsets, shape=part.box.leaf.shape or ())
        totals = tally.totals().tolist()
    for name in manifest.files:
        files.check(name)
    digests = digest_leaves({leaf.name: leaf.value for leaf in whole if not leaf.is_tensor})
    for leaf, (first, second) in zip(tensors, totals, strict=True):
        sums = Sums() + Sums(first=first, second=second)
        digests[leaf.name] = finish(sums, dtype=torch_dtype(leaf), shape=leaf.shape or ())
    return digests


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a leaf that is read at once."""

    number: int
    """Of the leaf, in the tally."""
    box: BoxRead
    offsets: tuple[int, ...]
    """Where it starts in the full tensor."""


def _parts_of(number: int, leaf: Leaf) -> Iterator[_Part]:
    """Cut the chunks of a leaf. What a part is read into is allocated when it is asked for, and not before."""
    for chunk in leaf.chunks:
        dtype = torch_dtype(leaf)
        for inside, sizes in dense_boxes(chunk.sizes, _BATCH_BYTES // dtype.itemsize):
            offsets = tuple(first + begin for first, begin in zip(chunk.offsets, inside, strict=True))
            yield _Part(number, BoxRead(leaf, chunk, inside, torch.empty(sizes, dtype=dtype)), offsets)


def _batches(parts: Iterable[_Part]) -> Iterator[list[_Part]]:
    """Group parts, so that small leaves that lie beside each other are read with one call."""
    batch: list[_Part] = []
    held = 0
    for part in parts:
        size = part.box.target.nbytes
        if batch and held + size > _BATCH_BYTES:
            yield batch
            batch, held = [], 0
        batch.append(part)
        held += size
    if batch:
        yield batch
