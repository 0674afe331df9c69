"""The check ``saves_differ``: checkpoints that follow each other do not hold the same bits.

A save that stores the tensors of an earlier one for ever, digests and all, is whole in itself, and only beside the
earlier one it shows. Whether there was anything to change in between is told by the ledger.

Reads manifests only; ``saved_equals_live`` sees to it that the files hold what these say. Torch-free.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckptrun.checkpoint.backend import Url, locate
from ckptrun.checkpoint.layout import parse_step
from ckptrun.checkpoint.manifest import read_manifest
from ckptrun.errors import CheckpointDamagedError, CheckpointNotFoundError
from ckptrun.proof.blame import component_of, difference_of
from ckptrun.proof.ledger import Line
from ckptrun.proof.verdict import Check, Status

__all__ = ["check_saves_differ"]

_NAME = "saves_differ"
_TRAINED = ("model", "optimizer")


def check_saves_differ(folders: Sequence[Url], lines: Sequence[Line]) -> Check | None:
    """Compare the digests of model and optimizer in each checkpoint with those in the next one.

    Where all are the same, a step in between must not have changed anything: it was skipped, or its learning rate was
    0, or its gradient norm 0 or not finite. So frozen models, and fp16 runs that skip all steps, are let through.

    Args:
        folders: Committed checkpoints of one run, in any order. Those whose manifest cannot be trusted are left out:
            they are for ``saved_equals_live`` to find.
        lines: The ledger of rank 0, all starts together.

    Returns:
        None where there are not two checkpoints to compare.
    """
    saves = sorted((save for folder in folders if (save := _read(folder)) is not None), key=lambda save: save.step)
    pairs = list(itertools.pairwise(saves))
    if not pairs:
        return None
    same = [(before, after) for before, after in pairs if not _differ(before.digests, after.digests)]
    unknown: list[str] = []
    for before, after in same:
        changed = _changing_step(lines, before.step, after.step)
        steps = f"steps {before.step} and {after.step}"
        if changed is not None and _is_complete(before, after):
            return _different(before, after, changed)
        if not _is_complete(before, after):
            unknown.append(f"the checkpoints of {steps} lack digests of model and optimizer")
        elif not _is_told(lines, before.step, after.step):
            unknown.append(f"the checkpoints of {steps} hold the same, and the ledger does not tell every step between")
    covered = {"checkpoints": len(saves)}
    if unknown:
        return Check(name=_NAME, status=Status.not_verified, detail=unknown[0], covered=covered)
    unchanged = "".join(f"; nothing was trained from step {one.step} to {other.step}" for one, other in same)
    detail = (
        f"{len(saves)} checkpoints, of steps {saves[0].step} to {saves[-1].step}, each hold another model or optimizer "
        f"than the one before{unchanged}"
    )
    return Check(name=_NAME, status=Status.equal, detail=detail, covered=covered)


@dataclass(frozen=True, slots=True)
class _Save:
    step: int
    digests: Mapping[str, str | None]
    """Of the tensors that training changes, by leaf name."""


def _read(folder: Url) -> _Save | None:
    place = locate(folder)
    try:
        manifest = read_manifest(place)
    except (CheckpointDamagedError, CheckpointNotFoundError):
        return None
    step = manifest.run.get("step", parse_step(place.name))
    if not isinstance(step, int):
        return None
    leaves = [leaf for leaf in manifest.leaves.values() if leaf.is_tensor and component_of(leaf.name) in _TRAINED]
    return _Save(step, {leaf.name: leaf.digest for leaf in leaves})


def _differ(one: Mapping[str, str | None], other: Mapping[str, str | None]) -> bool:
    """Whether the two are known to hold other bits."""
    return one.keys() != other.keys() or any(
        None not in (digest, other[name]) and digest != other[name] for name, digest in one.items()
    )


def _is_complete(before: _Save, after: _Save) -> bool:
    return bool(before.digests) and None not in (*before.digests.values(), *after.digests.values())


def _between(lines: Iterable[Line], first: int, last: int) -> list[Line]:
    return [line for line in lines if first < line["step"] <= last]


def _changing_step(lines: Iterable[Line], first: int, last: int) -> int | None:
    """A step after ``first`` and up to ``last`` that changed something; None where none is known to have."""
    for line in _between(lines, first, last):
        norm = float.fromhex(line["gradient_norm"])
        if not line["skipped"] and float.fromhex(line["learning_rate"]) and math.isfinite(norm) and norm:
            return int(line["step"])
    return None


def _is_told(lines: Iterable[Line], first: int, last: int) -> bool:
    return len({line["step"] for line in _between(lines, first, last)}) == last - first


def _different(before: _Save, after: _Save, changed: int) -> Check:
    leaf = min(after.digests, key=lambda name: (_TRAINED.index(component_of(name)), name))
    return Check(
        name=_NAME,
        status=Status.different,
        detail=f"all {len(after.digests)} tensors of model and optimizer have the same bits in the checkpoints of "
        f"steps {before.step} and {after.step}, though step {changed} changed them: the later one is stale",
        first_difference=difference_of(
            leaf,
            step=after.step,
            rank=None,
            expected=f"another digest than at step {before.step}",
            got=after.digests[leaf],
        ),
        covered={"leaves": len(after.digests)},
    )
