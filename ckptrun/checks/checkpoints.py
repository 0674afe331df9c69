"""Compares two checkpoints of one state, whatever the sharding of either, down to the first element that differs.

By the digests in the manifests first, which costs next to nothing; bytes are read of the first leaf that differs, and
of leaves without a digest. That the files hold what the digests say is for ``saved_equals_live``.

Reads files only; needs no process group. Memory is a few slabs, however large a leaf is.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Self

from ckptrun.checks.component_order import nearness
from ckptrun.checks.element import DifferingPart, first_element, first_entry
from ckptrun.engine.backends.interface import Url
from ckptrun.engine.dtypes import item_bytes
from ckptrun.engine.geometry import dense_boxes
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import Leaf, read_manifest
from ckptrun.engine.read_chunks import read_box
from ckptrun.engine.read_files import ShardFiles
from ckptrun.errors import CheckpointError, InternalError
from ckptrun.evidence.difference import Difference, component_of
from ckptrun.evidence.verdict import Check, Status
from ckptrun.rank_names import rank_of

__all__ = ["compare_checkpoints"]

_NAME = "final_state"
_SLAB_BYTES = 8 * 2**20
_ABSENT = "absent"


def compare_checkpoints(
    expected: Url, got: Url, *, step: int, name: str = _NAME, counts: Callable[[str], bool] = lambda _: True
) -> Check:
    """Compare every leaf of two checkpoints.

    The first difference is that of the component that comes first in
    :data:`~ckptrun.checks.component_order.BLAME_ORDER`, and in it of the leaf that was saved first. Where the
    checkpoints come from other numbers of ranks, leaves that belong to one rank are not compared, as no such resume
    takes them over.

    Args:
        expected: Folder of the checkpoint that is right.
        got: Folder of the other.
        step: Of both, for the report.
        name: Of the check.
        counts: Whether a leaf is compared.
    """
    try:
        with _Side(expected, counts) as one, _Side(got, counts) as other:
            return _compare(one, other, step=step, name=name)
    except (CheckpointError, OSError) as error:
        return Check(name=name, status=Status.not_verified, detail=str(error))


class _Side:
    """One of the two; a context manager, which closes its files."""

    def __init__(self, folder: Url, counts: Callable[[str], bool]) -> None:
        place = locate(folder)
        manifest = read_manifest(place)
        self.folder = str(place)
        self.leaves = {name: leaf for name, leaf in manifest.leaves.items() if counts(name)}
        self.world_size = manifest.world_size
        self.files = ShardFiles(place, manifest.files)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.files.__exit__()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """One leaf of both sides; None on a side that lacks it."""

    expected: Leaf | None
    got: Leaf | None

    @property
    def leaf(self) -> Leaf:
        found = self.expected or self.got
        if found is None:
            raise InternalError("A leaf is on neither side.")
        return found


def _compare(one: _Side, other: _Side, *, step: int, name: str) -> Check:
    pairs = _pairs(one, other)
    wrong, unknown = _different_ones(pairs, one, other)
    totals, counts = (Counter(component_of(pair.leaf.name) for pair in some) for some in (pairs, wrong))
    covered = {"leaves": len(pairs), "components": len(totals)}
    left_out = len(one.leaves.keys() | other.leaves.keys()) - len(pairs)
    note = f"; {left_out} leaves of single ranks are left out, on another number of ranks" if left_out else ""
    if not pairs or (unknown and not wrong):
        detail = f"{unknown[0] if unknown else 'there is no leaf to compare'}{note}"
        return Check(name=name, status=Status.not_verified, detail=detail)
    if not wrong:
        of_each = ", ".join(f"{component} {totals[component]}" for component in sorted(totals, key=nearness))
        detail = f"{len(pairs)} leaves at step {step} equal those of the reference ({of_each}){note}"
        return Check(name=name, status=Status.equal, detail=detail, covered=covered)
    of_each = ", ".join(f"{part} {counts[part]} of {totals[part]}" for part in sorted(counts, key=nearness))
    first = wrong[0].leaf
    found, how = _described(wrong[0], one, other, step=step)
    on_rank = "" if found.rank is None else f" of rank {found.rank}"
    return Check(
        name=name,
        status=Status.different,
        detail=f"{len(wrong)} of {len(pairs)} leaves at step {step} differ from the reference ({of_each}); "
        f"'{first.name}'{on_rank}: {how}{note}",
        first_difference=found,
        covered=covered,
    )


def _pairs(one: _Side, other: _Side) -> list[_Pair]:
    """All leaves of both, those of the component to blame first in front."""
    names = {**one.leaves, **other.leaves}
    if one.world_size != other.world_size:
        names = {name: leaf for name, leaf in names.items() if rank_of(leaf.path) is None}
    ordered = sorted(names, key=lambda name: nearness(component_of(name)))
    return [_Pair(expected=one.leaves.get(name), got=other.leaves.get(name)) for name in ordered]


def _different_ones(pairs: Iterable[_Pair], one: _Side, other: _Side) -> tuple[list[_Pair], list[str]]:
    """Those that differ, and why others could not be compared."""
    wrong: list[_Pair] = []
    unknown: list[str] = []
    for pair in pairs:
        try:
            if _is_different(pair, one, other):
                wrong.append(pair)
        except (CheckpointError, OSError) as error:
            unknown.append(f"'{pair.leaf.name}' has no digest and cannot be read: {error}")
    return wrong, unknown


def _is_different(pair: _Pair, one: _Side, other: _Side) -> bool:
    expected, got = pair.expected, pair.got
    if expected is None or got is None or (expected.dtype, expected.shape) != (got.dtype, got.shape):
        return True
    if not expected.is_tensor:
        return first_entry(expected.value, got.value, name=expected.name) is not None
    if expected.digest is None or got.digest is None:
        return _first_element(expected, got, one, other) is not None
    return expected.digest != got.digest


def _described(pair: _Pair, one: _Side, other: _Side, *, step: int) -> tuple[Difference, str]:
    """How the two leaves differ, for ``verdict.json`` and for people."""
    expected, got = pair.expected, pair.got
    about = Difference.of_leaf(pair.leaf.name, step=step, rank=rank_of(pair.leaf.path))
    if expected is None or got is None or (expected.dtype, expected.shape) != (got.dtype, got.shape):
        kinds = replace(about, expected=_kind(expected), got=_kind(got))
        return kinds, f"expected {kinds.expected}, got {kinds.got}"
    by_digest = replace(about, expected=expected.digest, got=got.digest)
    part: DifferingPart | None
    if not expected.is_tensor:
        part = first_entry(expected.value, got.value, name=expected.name)
    else:
        try:
            part = _first_element(expected, got, one, other)
        except (CheckpointError, OSError) as error:
            return by_digest, f"the digests differ; {error}"
    if part is None:
        return by_digest, "the digests of what was live differ, the bits in the files do not"
    return part.narrowed(about), str(part)


def _kind(leaf: Leaf | None) -> str:
    if leaf is None:
        return _ABSENT
    return f"{leaf.dtype} {list(leaf.shape or ())}" if leaf.is_tensor else f"a {type(leaf.value).__name__}"


def _first_element(expected: Leaf, got: Leaf, one: _Side, other: _Side) -> DifferingPart | None:
    shape = expected.shape or ()
    for offsets, sizes in dense_boxes(shape, _SLAB_BYTES // item_bytes(str(expected.dtype))):
        slabs = (read_box(side.files, leaf, offsets, sizes) for side, leaf in ((one, expected), (other, got)))
        part = first_element(*slabs, offsets=offsets)
        if part is not None:
            return part
    return None
