"""What is another than in an older sweep: verdicts, cells, versions, and what saving costs. Pure. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptrun.report.state import State
from ckptrun.report.sweep_facts import CellFacts

__all__ = ["Change", "Changes", "changes_of"]

_FACTOR, _LEAST_SECONDS = 1.5, 0.05


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that has changed."""

    kind: str
    text: str
    anchor: str = ""
    """The cell on this page; empty where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """All that has changed, the worst first."""

    older: str
    lines: Sequence[Change]


def changes_of(cells: Sequence[CellFacts], before: Sequence[CellFacts], *, older: str) -> Changes:
    """Compare cells that have the same overrides; the places of files are none.

    Args:
        cells: Of this sweep.
        before: Of the older one.
        older: What it is called.
    """
    known = {_key(cell): cell for cell in before}
    mine = {_key(cell) for cell in cells}
    lines = []
    for cell in cells:
        was = known.get(_key(cell))
        name = cell.name
        if was is None:
            lines.append(Change("new cell", f"{name}: {cell.state.words}", cell.anchor))
        elif was.state is not cell.state:
            kind = "better" if cell.state.is_good else "worse" if _is_worse(cell, was) else "other"
            lines.append(Change(kind, f"{name}: {cell.state.words}, was {was.state.words}", cell.anchor))
        elif not cell.state.is_good and _blame(cell) != _blame(was):
            text = f"{name}: still {cell.state.words}, to blame is {_blame(cell)}, was {_blame(was)}"
            lines.append(Change("other", text, cell.anchor))
        lines += [] if was is None else _costs(cell, was, name)
    lines += [Change("gone", f"{was.name}: was {was.state.words}") for key, was in known.items() if key not in mine]
    lines += _versions(cells, before)
    order = ("worse", "other", "gone", "new cell", "better", "slower", "faster", "version")
    return Changes(older=older, lines=sorted(lines, key=lambda line: order.index(line.kind)))


def _key(cell: CellFacts) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(cell.values.items()))


def _is_worse(cell: CellFacts, was: CellFacts) -> bool:
    order = list(State)
    return order.index(cell.state) < order.index(was.state)


def _blame(cell: CellFacts) -> str:
    verdict = cell.run.verdict if cell.run is not None else None
    return (verdict.blame if verdict is not None else None) or "nobody"


def _costs(cell: CellFacts, was: CellFacts, name: str) -> list[Change]:
    now, then = (float((one.save or {}).get("blocked_seconds") or 0.0) for one in (cell, was))
    if min(now, then) <= 0 or abs(now - then) < _LEAST_SECONDS or max(now, then) < _FACTOR * min(now, then):
        return []
    text = f"{name}: training waited {now:.3f} s for saves, was {then:.3f} s"
    return [Change("slower" if now > then else "faster", text, cell.anchor)]


def _versions(cells: Sequence[CellFacts], before: Sequence[CellFacts]) -> list[Change]:
    now, then = _versions_of(cells), _versions_of(before)
    return [
        Change("version", f"{name} {now.get(name, 'not known')}, was {then.get(name, 'not known')}")
        for name in dict.fromkeys([*now, *then])
        if now.get(name) != then.get(name)
    ]


def _versions_of(cells: Sequence[CellFacts]) -> Mapping[str, str]:
    found: dict[str, set[str]] = {}
    for cell in cells:
        for name, value in (cell.run.versions if cell.run is not None else {}).items():
            found.setdefault(name, set()).add(value)
    return {name: ", ".join(sorted(values)) for name, values in found.items()}
