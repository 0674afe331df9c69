"""Files outside the run folder that legs of a proof have in common: what one wrote and another read.

Legs must be alike in all but the kill. A cache that the reference has filled and the killed run reads hides what the
run could not have computed by itself; a counter that both raise makes them differ. Neither says anything of a resume.

Torch-free; reads nothing but what it is given.
"""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import PurePosixPath
from typing import assert_never

from ckptrun.evidence.verdict import Check, Status

__all__ = ["Access", "Crossing", "Window", "check_outside", "find_crossings", "is_matched"]

_EARLIER = "earlier_proof"
_NAMED = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """One file that one process opened, see :mod:`ckptrun.run.watch.file_watch`."""

    leg: str
    start: int
    at: int
    how: str
    path: str
    changed: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One start of one leg: from its begin to that of the next one. No two run at the same time."""

    leg: str
    start: int
    began: int


class Seen(StrEnum):
    """How a leg saw a file that another one left."""

    read = "read"
    missed = "missed"
    """The writer had removed it."""
    listed = "listed"
    """With its folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """A file that one leg left and another one saw."""

    path: str
    writer: str
    reader: str
    seen: Seen = Seen.read
    changed: int | None = None

    def __str__(self) -> str:
        writer, reader = (f"the {leg.replace('_', ' ')}" for leg in (self.writer, self.reader))
        match self.seen:
            case Seen.missed:
                return f"{self.path} was removed by {writer} and looked for by {reader}"
            case Seen.listed:
                return f"{self.path} was written by {writer} into a folder that {reader} looked through"
            case Seen.read:
                return f"{self.path} was written by {writer} and read by {reader}"
            case _:
                assert_never(self.seen)


@dataclass(slots=True)
class _Own:
    """What one start did with one file, in order."""

    accesses: list[Access] = field(default_factory=list)

    @property
    def first(self) -> Access:
        return self.accesses[0]

    def has(self, *hows: str) -> bool:
        return any(access.how in hows for access in self.accesses)


def find_crossings(
    accesses: Iterable[Access],
    windows: Sequence[Window],
    *,
    known: Mapping[str, int],
    is_there: Callable[[str], bool],
) -> list[Crossing]:
    """Return every file that one leg wrote and another one read, by path.

    Args:
        accesses: Of all legs.
        windows: In the order in which they ran.
        known: What an earlier proof of this folder found to be shared: path -> when it had last been changed.
        is_there: Whether a path exists now.
    """
    by_path: dict[str, dict[tuple[str, int], _Own]] = {}
    for access in sorted(accesses, key=lambda access: access.at):
        starts = by_path.setdefault(access.path, {})
        starts.setdefault((access.leg, access.start), _Own()).accesses.append(access)
    found: dict[str, Crossing] = {}
    for path, starts in by_path.items():
        for (leg, _), own in starts.items():
            crossing = _content(path, leg, own, starts, windows, known) or _absence(path, leg, own, starts)
            if crossing is not None:
                found.setdefault(path, crossing)
    for crossing in _listings(by_path, is_there):
        found.setdefault(crossing.path, crossing)
    return [found[path] for path in sorted(found)]


def _content(  # one call
    path: str,
    leg: str,
    own: _Own,
    starts: Mapping[tuple[str, int], _Own],
    windows: Sequence[Window],
    known: Mapping[str, int],
) -> Crossing | None:
    """A start that read what it had not written, and another leg had."""
    first = next((access for access in own.accesses if access.how in ("read", "append", "fresh")), None)
    if first is None or not own.has("read") or first.how == "fresh":
        return None
    changed = first.changed or 0
    if known.get(path) == changed:
        return Crossing(path=path, writer=_EARLIER, reader=leg, changed=changed)
    writer = next((window.leg for window in reversed(windows) if window.began <= changed), None)
    if writer is None:
        # The clock of its storage may be slow, or it was changed through memory, which leaves no time.
        writer = next((name for (name, _), other in starts.items() if name != leg and _wrote(other, first.at)), leg)
    return None if writer == leg else Crossing(path=path, writer=writer, reader=leg, changed=changed)


def _wrote(other: _Own, before: int) -> bool:
    return any(access.how == "fresh" and access.at < before for access in other.accesses)


def _absence(path: str, leg: str, own: _Own, starts: Mapping[tuple[str, int], _Own]) -> Crossing | None:
    """A start that looked for a file which another leg had found, and removed."""
    if own.first.how != "missed":
        return None
    for (name, _), other in starts.items():
        is_before = name != leg and other.has("removed") and other.first.at < own.first.at
        if is_before and other.first.how not in ("missed", "fresh"):
            return Crossing(path=path, writer=name, reader=leg, seen=Seen.missed)
    return None


def _listings(
    by_path: Mapping[str, Mapping[tuple[str, int], _Own]], is_there: Callable[[str], bool]
) -> Iterable[Crossing]:
    """Folders that one leg has listed, and in which another one had made a file that stayed."""
    listed = {path: starts for path, starts in by_path.items() if any(own.has("listed") for own in starts.values())}
    for path, starts in by_path.items():
        folder = str(PurePosixPath(path).parent)
        for (reader, _), seen in listed.get(folder, {}).items():
            at = max((access.at for access in seen.accesses if access.how == "listed"), default=0)
            made = (
                name
                for (name, _), own in starts.items()
                if name != reader and own.has("fresh") and own.first.at < at and not own.has("removed")
            )
            writer = next(made, None)
            if writer is not None and is_there(path):
                yield Crossing(path=path, writer=writer, reader=reader, seen=Seen.listed)
                break


def is_matched(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path is meant by one of the patterns: as ``*`` and ``?`` of a shell, or as a folder above it."""
    return any(
        fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern.rstrip('/')}/*")
        for pattern in patterns
    )


def check_outside(crossings: Sequence[Crossing], *, accesses: int) -> Check:
    """``outside_files``: no leg read what another one left.

    Args:
        crossings: Without those that may be.
        accesses: How many files outside were noted at all.
    """
    name, covered = "outside_files", {"files": accesses}
    if not crossings:
        detail = (
            f"no leg read a file outside the run folder that another one wrote ({accesses} such files were watched)"
        )
        return Check(name=name, status=Status.equal, detail=detail, covered=covered)
    folder = str(PurePosixPath(crossings[0].path).parent)
    more = [crossing.path for crossing in crossings[1:]]
    others = (
        f" (and {len(more)} more: {', '.join(more[:_NAMED])}{' ...' if len(more) > _NAMED else ''})" if more else ""
    )
    detail = (
        f"{crossings[0]}{others}: legs that share a file say nothing of a resume. Give each leg a copy of its own with "
        f"proof.private=[{folder}], or, if nothing depends on who wrote it, say so with proof.shared=['{folder}/*']"
    )
    return Check(name=name, status=Status.not_verified, detail=detail, covered=covered)
