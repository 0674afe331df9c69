"""The check ``saved_equals_live``: the files of every checkpoint hold what was live when its save was requested.

The digests in a manifest were taken from the live state at the request, before a byte was staged or written. Here they
are made anew from the files, after the ranks have ended. A save that was torn by training that went on meanwhile, that
wrote the tensors of an earlier save, or that storage has damaged since, comes out otherwise. So does a checkpoint that
says another step than its folder or the state in it.

Reads files only; needs no process group.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from ckptrun.checks.component_order import nearness
from ckptrun.checks.file_digests import digests_of_files
from ckptrun.engine.backends.interface import Location, Url
from ckptrun.engine.consistency import contradictions, step_of
from ckptrun.engine.layout import parse_step
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import Leaf, Manifest, read_manifest
from ckptrun.engine.read_files import ShardFiles
from ckptrun.errors import CheckpointDamagedError, CheckpointError, CheckpointNotFoundError, ShardFileError
from ckptrun.evidence.difference import Difference, component_of
from ckptrun.evidence.verdict import Check, Status
from ckptrun.rank_names import rank_of

__all__ = ["check_saved"]

_NAME = "saved_equals_live"
_PARTLY = "only partly saved"
_SHOWN = 8


def check_saved(
    folders: Sequence[Url], *, damaged: Mapping[str, str], counts: Callable[[str], bool] = lambda _: True
) -> Check:
    """Make the digest of every leaf of every checkpoint anew from the files, and compare it with the manifest's.

    Every byte of every file is read, also after a difference was found.

    Args:
        folders: Every committed checkpoint.
        damaged: Folder -> the fault that was planted in it on purpose; it must be found damaged. A folder that was
            saved again since is whole again, and must not stand here. One that is not in ``folders``, because the
            fault took its manifest, is looked at too; of one that was removed as an old one only this is said.
        counts: Whether the digest of a leaf is compared; its bytes are checked in any case.
    """
    places = {str(place): place for place in map(locate, [*folders, *damaged])}
    planted = {str(locate(folder)): what for folder, what in damaged.items()}
    examined = [_examine(place, counts) for place in places.values()]
    wrong = [what for found in examined if (what := _contradiction(found, planted.get(found.folder))) is not None]
    whole = [found for found in examined if found.folder not in planted]
    covered = {
        "checkpoints": len(whole),
        "leaves": sum(found.leaves for found in whole),
        "bytes": sum(found.bytes for found in whole),
    }
    if wrong:
        more = f"; {len(wrong)} of {len(examined)} checkpoints are not as they should be" if len(wrong) > 1 else ""
        detail, first = wrong[0]
        return Check(
            name=_NAME,
            status=Status.different,
            detail=f"{detail}{more}",
            first_difference=first,
            covered=covered,
        )
    unknown = [found.unknown for found in examined if found.unknown and not (found.is_gone and found.folder in planted)]
    if unknown or not whole:
        detail = unknown[0] if unknown else f"there is no checkpoint{' that is meant to be whole' if planted else ''}"
        return Check(name=_NAME, status=Status.not_verified, detail=detail)
    faults = "".join(_fault_text(found, planted[found.folder]) for found in examined if found.folder in planted)
    return Check(name=_NAME, status=Status.equal, detail=f"{_covered_text(whole)}{faults}", covered=covered)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Damage:
    """The first thing that is not as it was live."""

    leaf: Leaf | None
    what: str
    expected: str | None
    """The digest at the request."""
    got: str
    """That of the files, or what is the matter with them."""


@dataclass(slots=True, kw_only=True)
class _Examined:
    """What is known of one checkpoint."""

    folder: str
    step: int | None
    leaves: int = 0
    bytes: int = 0
    damage: _Damage | None = None
    is_gone: bool = False
    """Whether there is nothing in its place."""
    unknown: str = ""
    """Why it, or a part of it, could not be compared."""


def _examine(place: Location, counts: Callable[[str], bool]) -> _Examined:
    found = _Examined(folder=str(place), step=parse_step(place.name))
    manifest: Manifest | None = None
    try:
        if not place.backend.list_names(place.path):
            # Removed as an old one: no fault was noticed by that.
            found.is_gone, found.unknown = True, f"{found.folder} is gone"
            return found
        manifest = read_manifest(place)
        found.step = step_of(manifest, place.name)
        wrong = contradictions(manifest, place.name)
        if wrong:
            leaf = manifest.leaves.get(wrong[0].leaf or "")
            found.damage = _Damage(
                leaf=leaf, what=f"{found.folder}: {wrong[0]}", expected=wrong[0].other, got=wrong[0].what
            )
            return found
        with ShardFiles(place, manifest.files) as files:
            digests = digests_of_files(files, manifest)
    except (CheckpointDamagedError, CheckpointNotFoundError) as error:
        leaf = manifest.leaves.get(error.leaf or "") if manifest and isinstance(error, ShardFileError) else None
        expected = None if leaf is None else leaf.digest
        found.damage = _Damage(leaf=leaf, what=str(error), expected=expected, got="damaged")
    except (CheckpointError, OSError) as error:
        found.unknown = f"{found.folder} could not be compared: {type(error).__name__}: {error}"
    else:
        _compare(found, manifest, digests, counts)
    return found


def _compare(found: _Examined, manifest: Manifest, digests: Mapping[str, str], counts: Callable[[str], bool]) -> None:
    leaves = [leaf for leaf in manifest.leaves.values() if counts(leaf.name)]
    found.leaves = sum(leaf.name in digests for leaf in leaves)
    found.bytes = sum(chunk.bytes for leaf in leaves for chunk in leaf.chunks)
    without = [leaf.name for leaf in leaves if leaf.digest is None]
    if without:
        found.unknown = (
            f"{len(without)} of {len(leaves)} leaves of {found.folder} have no digest of what was live, the first is "
            f"'{without[0]}'"
        )
    wrong = [leaf for leaf in leaves if leaf.digest not in (None, digests.get(leaf.name))]
    if wrong:
        first = min(wrong, key=lambda leaf: nearness(component_of(leaf.name)))
        got = digests.get(first.name, _PARTLY)
        found.damage = _Damage(
            leaf=first,
            what=f"{len(wrong)} of {len(leaves)} leaves in the files are not what was live when the save was "
            f"requested, the first is '{first.name}'",
            expected=first.digest,
            got=got,
        )


def _contradiction(found: _Examined, planted: str | None) -> tuple[str, Difference] | None:
    """What is not as it should be, as text and as a difference; a planted fault that was not noticed, too."""
    damage = found.damage
    if planted is not None:
        if damage is not None or found.unknown:
            return None
        first = Difference.of_leaf(None, step=found.step, rank=None, expected=planted, got="whole")
        return f"step {found.step}: {planted} was not noticed, all of {found.folder} is as it was live", first
    if damage is None:
        return None
    name, rank = (None, None) if damage.leaf is None else (damage.leaf.name, rank_of(damage.leaf.path))
    first = Difference.of_leaf(name, step=found.step, rank=rank, expected=damage.expected, got=damage.got)
    return f"step {found.step}: {damage.what}", first


def _fault_text(found: _Examined, planted: str) -> str:
    if found.damage is None:
        return f"; {planted} in step {found.step} can be noticed no more: {found.unknown}"
    return f"; {planted} in step {found.step} was noticed: {found.damage.what}"


def _covered_text(whole: Iterable[_Examined]) -> str:
    whole = list(whole)
    steps = ", ".join(str(found.step) for found in whole[:_SHOWN])
    more = f" and {len(whole) - _SHOWN} more" if len(whole) > _SHOWN else ""
    return (
        f"{sum(found.leaves for found in whole):,} leaves, {sum(found.bytes for found in whole):,} bytes in the files "
        f"of {len(whole)} checkpoint{'s' if len(whole) > 1 else ''} (step {steps}{more}) are what was live when the "
        "saves were requested"
    )
