"""The check ``saves_differ``: where training has changed weights or moments between two saves, the files show it.

A save that stores the tensors of an earlier one for ever, digests and all, is whole in itself, and only beside the
earlier one it shows. Whether there was anything new to save is told by the ledger, which has looked at the tensors that
the optimizer updates (see ``trained``): an optimizer that holds, skips or rounds away leaves saves that are rightly the
same.

Reads manifests only; ``saved_equals_live`` sees to it that the files hold what these say. Torch-free.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ckptrun.engine.backends.interface import Url
from ckptrun.engine.consistency import step_of
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import read_manifest
from ckptrun.errors import CheckpointDamagedError, CheckpointNotFoundError
from ckptrun.evidence.difference import Difference, component_of
from ckptrun.evidence.mismatch import LedgerLine
from ckptrun.evidence.verdict import Check, Status

__all__ = ["check_saves_differ"]

_NAME = "saves_differ"
_TRAINED = {"model": "weights", "optimizer": "moments"}
"""Component -> what the ledger calls the tensors of it that training changes."""


def check_saves_differ(
    folders: Sequence[Url], ledgers: Sequence[Sequence[LedgerLine]], *, counts: Callable[[str], bool] = lambda _: True
) -> Check | None:
    """Compare the digests of model and optimizer in each checkpoint with those in the next one.

    Two that hold the same are right if weights, or moments, were the same at both; where the ledger does not tell,
    nothing is claimed.

    Args:
        folders: Committed checkpoints of one run, in any order. Those whose manifest cannot be trusted are left out:
            they are for ``saved_equals_live`` to find.
        ledgers: That of each rank, all starts together.
        counts: Whether a leaf is compared at all.

    Returns:
        None where there are not two checkpoints to compare.
    """
    saves = sorted((save for folder in folders if (save := _read(folder, counts)) is not None), key=lambda s: s.step)
    pairs = list(itertools.pairwise(saves))
    if not pairs:
        return None
    unknown: list[str] = []
    held: list[str] = []
    for before, after in pairs:
        same = [part for part in _TRAINED if _is_same(before, after, part)]
        changed = {part: _has_changed(ledgers, before.step, after.step, _TRAINED[part]) for part in same}
        stale = [part for part in same if changed[part]]
        if stale:
            return _different(before, after, stale[0], ledgers)
        if not _is_any_known_to_differ(before, after):
            steps = f"steps {before.step} and {after.step}"
            if not before.is_complete or not after.is_complete:
                unknown.append(f"the checkpoints of {steps} lack digests of model and optimizer")
            elif None in changed.values():
                untold = " and ".join(_TRAINED[part] for part in same if changed[part] is None)
                unknown.append(
                    f"the checkpoints of {steps} hold the same, and the ledger does not tell whether {untold} changed"
                )
            else:
                held.append(f"from step {before.step} to {after.step}")
    covered = {"checkpoints": len(saves)}
    if unknown:
        return Check(name=_NAME, status=Status.not_verified, detail=unknown[0], covered=covered)
    unchanged = f"; weights and moments did not change {', '.join(held)}" if held else ""
    detail = (
        f"{len(saves)} checkpoints, of steps {saves[0].step} to {saves[-1].step}: each holds other weights and moments "
        f"than the one before, where they had changed{unchanged}"
    )
    return Check(name=_NAME, status=Status.equal, detail=detail, covered=covered)


@dataclass(frozen=True, slots=True)
class _Save:
    step: int
    digests: Mapping[str, Mapping[str, str | None]]
    """Component -> leaf name -> digest, of the tensors that training changes."""

    @property
    def is_complete(self) -> bool:
        """Whether there are digests, one for each tensor."""
        found = [digest for digests in self.digests.values() for digest in digests.values()]
        return bool(found) and None not in found


def _read(folder: Url, counts: Callable[[str], bool]) -> _Save | None:
    place = locate(folder)
    try:
        manifest = read_manifest(place)
    except (CheckpointDamagedError, CheckpointNotFoundError):
        return None
    step = step_of(manifest, place.name)
    if step is None:
        return None
    leaves = [leaf for leaf in manifest.leaves.values() if leaf.is_tensor and counts(leaf.name)]
    return _Save(
        step,
        {part: {leaf.name: leaf.digest for leaf in leaves if component_of(leaf.name) == part} for part in _TRAINED},
    )


def _is_same(before: _Save, after: _Save, part: str) -> bool:
    """Whether all tensors of a component are known to have the same bits in both, and there are some."""
    one, other = before.digests[part], after.digests[part]
    return bool(one) and None not in one.values() and one == other


def _is_any_known_to_differ(before: _Save, after: _Save) -> bool:
    for part in _TRAINED:
        one, other = before.digests[part], after.digests[part]
        if one.keys() != other.keys() or any(None not in (d, other[n]) and d != other[n] for n, d in one.items()):
            return True
    return False


def _has_changed(ledgers: Sequence[Sequence[LedgerLine]], first: int, last: int, what: str) -> bool | None:
    """Whether ``what`` had other bits after step ``last`` than after step ``first``, on any rank; None: unknown."""
    found = [_has_changed_on_rank(lines, first, last, what) for lines in ledgers if lines]
    if True in found:
        return True
    return None if None in found or not found else False


def _has_changed_on_rank(lines: Sequence[LedgerLine], first: int, last: int, what: str) -> bool | None:
    """The same on one rank; within one start, because in the next the rank may hold another part of it."""
    for start in sorted({line["start"] for line in lines if line["step"] == last}, reverse=True):
        prints = dict(_fingerprints([line for line in lines if line["start"] == start], what))
        if None not in (prints.get(first), prints.get(last)):
            return prints[first] != prints[last]
    return None


def _fingerprints(lines: Sequence[LedgerLine], what: str) -> Iterator[tuple[int, str | None]]:
    """Step -> what is known of ``what`` after it."""
    for line in lines:
        if "trained_before" in line:
            yield line["step"] - 1, line["trained_before"][what]
        if "trained" in line:
            yield line["step"], line["trained"][what]


def _changing_step(ledgers: Sequence[Sequence[LedgerLine]], first: int, last: int, what: str) -> int:
    """The first step after ``first`` that is known to have changed ``what``; ``last`` where no single one is."""
    for step in range(first + 1, last):
        if _has_changed(ledgers, step - 1, step, what):
            return step
    return last


def _different(before: _Save, after: _Save, part: str, ledgers: Sequence[Sequence[LedgerLine]]) -> Check:
    digests, what = after.digests[part], _TRAINED[part]
    leaf = min(digests)
    changed = _changing_step(ledgers, before.step, after.step, what)
    return Check(
        name=_NAME,
        status=Status.different,
        detail=f"all {len(digests)} tensors of {part} have the same bits in the checkpoints of steps {before.step} and "
        f"{after.step}, though step {changed} changed the {what}: the later one is stale",
        first_difference=Difference.of_leaf(
            leaf,
            step=after.step,
            rank=None,
            expected=f"another digest than at step {before.step}",
            got=digests[leaf],
        ),
        covered={"leaves": len(digests)},
    )
