"""Whether what a manifest says of its run agrees with the folder it lies in and with what was saved.

The step stands in three places: in the name of the folder, in ``run.step``, and in the leaf ``progress.step``, which is
what a resumed run goes on from; ranks and mesh stand beside what the ranks have written. Each is right by itself in a
manifest whose checksums are right, so only a comparison tells. Made before a commit, at a load, and by the tools.

Must not import torch.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ckptrun.engine.layout import parse_step
from ckptrun.engine.manifest import Manifest
from ckptrun.errors import ManifestError
from ckptrun.rank_names import leading_rank, rank_in

__all__ = ["Contradiction", "contradictions", "require_consistent", "step_of"]

_PROGRESS = "progress.step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contradiction:
    """Two places that do not say the same."""

    what: str
    """What one of them says, with its name."""
    other: str
    leaf: str | None = None
    """The leaf that is one of the two, or is about the same."""

    def __str__(self) -> str:
        return f"{self.what}, but {self.other}"


def contradictions(manifest: Manifest, folder: str) -> list[Contradiction]:
    """Return what does not agree.

    What a writer of one's own puts into ``run`` means what it likes, but for ``step``; the rest is compared where the
    manifest has the config of a run of ckptrun.

    Args:
        manifest: Checked in itself.
        folder: The name, without its parents, of the folder it is in, or is to be committed as.
    """
    found = [*_of_step(manifest, folder)]
    if "config" in manifest.run:
        found += [*_of_ranks(manifest), *_of_leaves(manifest)]
    return found


def require_consistent(manifest: Manifest, folder: str, *, place: str) -> None:
    """Raise ManifestError where something does not agree; ``place`` names the checkpoint in full."""
    found = contradictions(manifest, folder)
    if found:
        raise ManifestError(
            f"{place} contradicts itself: {found[0]}. What it says cannot be trusted; take another step, or, if the "
            "folder was renamed, give it its name back.",
            folder=place,
        )


def step_of(manifest: Manifest, folder: str) -> int | None:
    """Return the step that a run would go on from; where no run has saved it, what the manifest or the folder say."""
    for step in (_progress(manifest), _integer(manifest.run.get("step"))):
        if step is not None:
            return step
    return parse_step(folder)


def _of_step(manifest: Manifest, folder: str) -> Iterator[Contradiction]:
    said, named, progress = _integer(manifest.run.get("step")), parse_step(folder), _progress(manifest)
    if said is not None and named is not None and said != named:
        yield Contradiction(what=f"its manifest says step {said}", other=f"its folder is {folder}", leaf=_PROGRESS)
    if progress is None:
        return
    if said is not None and said != progress:
        yield Contradiction(
            what=f"its manifest says step {said}", other=f"the saved {_PROGRESS} is {progress}", leaf=_PROGRESS
        )
    if said is None and named is not None and named != progress:
        yield Contradiction(
            what=f"its folder is {folder}", other=f"the saved {_PROGRESS} is {progress}", leaf=_PROGRESS
        )


def _of_ranks(manifest: Manifest) -> Iterator[Contradiction]:
    ranks, said, mesh = manifest.world_size, _integer(manifest.run.get("world_size")), manifest.run.get("mesh")
    if said is not None and said != ranks:
        yield Contradiction(what=f"its run says {said} ranks", other=f"{ranks} have saved it")
    if isinstance(mesh, Mapping) and all(type(degree) is int for degree in mesh.values()):
        product = math.prod(mesh.values())
        if product != ranks:
            axes = ", ".join(f"{axis} {degree}" for axis, degree in mesh.items()) or "no axis"
            yield Contradiction(what=f"its mesh ({axes}) has {product} ranks", other=f"{ranks} have saved it")


def _of_leaves(manifest: Manifest) -> Iterator[Contradiction]:
    """What ranks beyond the last one are said to have saved."""
    ranks = manifest.world_size
    for name in manifest.files:
        rank = leading_rank(name)
        if rank is not None and rank >= ranks:
            yield Contradiction(what=f"it has the file {name}", other=f"{ranks} ranks have saved it")
    for leaf in manifest.leaves.values():
        for element in leaf.path:
            rank = rank_in(element)
            if rank is not None and rank >= ranks:
                what = f"it has the leaf '{leaf.name}' of rank {rank}"
                yield Contradiction(what=what, other=f"{ranks} ranks have saved it", leaf=leaf.name)


def _progress(manifest: Manifest) -> int | None:
    """The step in the saved state of a run; None where it is no run of ckptrun's, or was not saved."""
    leaf = manifest.leaves.get(_PROGRESS)
    return _integer(leaf.value) if leaf is not None and "config" in manifest.run else None


def _integer(value: Any) -> int | None:
    return value if type(value) is int else None
