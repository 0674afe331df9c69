"""What is wrong with a checkpoint: one record for each place, as ``verify`` reports it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

__all__ = ["Damage", "DamageKind", "merged"]


class DamageKind(StrEnum):
    """What was found wrong."""

    manifest = "manifest"
    """The manifest cannot be trusted, so nothing else could be checked."""
    contradiction = "contradiction"
    """The manifest, which is what was written, contradicts the folder's name or what was saved."""
    missing = "missing"
    """A file that the manifest names is not there."""
    length = "length"
    """A file is shorter or longer than the manifest says."""
    header = "header"
    """The header of a file is not what was written, or contradicts the manifest."""
    data = "data"
    """Bytes of a leaf are not what was written."""
    absent = "absent"
    """Bytes of a leaf are not there: the file ends before them."""
    unreadable = "unreadable"
    """The device fails to give bytes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """A damaged place."""

    kind: DamageKind
    file: str
    leaf: str | None = None
    """None where it is not about one leaf."""
    begin: int | None = None
    """Where it is in the file, up to ``end``."""
    end: int | None = None
    expected: str
    found: str
    blocks: int = 1
    """How many damaged blocks it covers; ``expected`` and ``found`` are of the first."""

    def to_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return {
            "kind": self.kind.value,
            "file": self.file,
            "leaf": self.leaf,
            "begin": self.begin,
            "end": self.end,
            "blocks": self.blocks,
            "expected": self.expected,
            "found": self.found,
        }


def merged(damages: Iterable[Damage]) -> list[Damage]:
    """Return them by place; damaged blocks of one leaf that lie beside each other become one."""
    result: list[Damage] = []
    for damage in sorted(damages, key=_place):
        last = result[-1] if result else None
        if last is not None and _continues(last, damage):
            result[-1] = replace(last, end=damage.end, blocks=last.blocks + damage.blocks)
        else:
            result.append(damage)
    return result


def _place(damage: Damage) -> tuple[str, int, str]:
    return damage.file, -1 if damage.begin is None else damage.begin, damage.leaf or ""


def _continues(one: Damage, other: Damage) -> bool:
    return (
        one.kind is other.kind
        and one.kind in (DamageKind.data, DamageKind.absent)
        and (one.file, one.leaf, one.end) == (other.file, other.leaf, other.begin)
    )
