"""What a report must not leave out silently: not looked at, did not happen, or cannot be read. Pure. Torch-free."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ckptrun.evidence.verdict import Status, Verdict
from ckptrun.report.run_facts import RunFacts
from ckptrun.report.state import State
from ckptrun.report.sweep_facts import CellFacts, SweepFacts
from ckptrun.text import counted

__all__ = ["Uncovered", "uncovered_of"]


@dataclass(slots=True, kw_only=True)
class Uncovered:
    """One thing that was not covered."""

    kind: str
    """``not exercised``: it did not happen; ``not covered``: it did, and was left out; ``not run``; ``not read``."""
    text: str
    """Of the first cell that it holds for."""
    cells: list[CellFacts]
    """Empty: it is about the whole."""


def uncovered_of(cells: Sequence[CellFacts], sweep: SweepFacts | None) -> list[Uncovered]:
    """Return everything, once each, what holds for most cells first within its kind."""
    found: dict[tuple[str, str], Uncovered] = {}
    for cell in cells:
        for kind, text in _of_cell(cell):
            # Numbers and names differ from cell to cell where the sentence is the same.
            key = kind, re.sub(r"\d[\d,.]*", "#", text)
            found.setdefault(key, Uncovered(kind=kind, text=text, cells=[])).cells.append(cell)
    of_sweep = [] if sweep is None else [Uncovered(kind=kind, text=text, cells=[]) for kind, text in _of_sweep(sweep)]
    order = ("not run", "not read", "not exercised", "not covered")
    return sorted([*of_sweep, *found.values()], key=lambda one: (order.index(one.kind), -len(one.cells)))


def _of_cell(cell: CellFacts) -> Iterator[tuple[str, str]]:
    if cell.state is State.skipped:
        yield "not run", f"skipped: {cell.reason.strip().splitlines()[0] if cell.reason.strip() else 'no reason'}"
        return
    if cell.run is None:
        yield "not read", "the folder of the cell is not there: only summary.json says what became of it"
        return
    run = cell.run
    for text in run.unread:
        yield "not read", text
    if run.verdict is not None:
        if cell.state.value != run.state.value and cell.state is not State.failed:
            of = "of an earlier start" if cell.state is State.done else "of another time"
            yield (
                "not read",
                f"summary.json says {cell.state.words}; the verdict.json there, {run.state.words}, is {of}",
            )
        yield from _of_verdict(run, run.verdict)
    elif cell.state is State.done:
        yield "not covered", "nothing was asked to be proved"
    else:
        yield "not read", "there is no verdict.json: nothing is known but what starts and ranks have said"


def _of_verdict(run: RunFacts, verdict: Verdict) -> Iterator[tuple[str, str]]:
    for text in verdict.not_exercised:
        yield "not exercised", text
    for text in verdict.not_covered:
        yield "not covered", text
    missed = len(run.planned) - len({fault.index for fault in run.fired})
    if missed > 0:
        yield "not exercised", f"{missed} of {counted(len(run.planned), 'planned fault')} never struck"
    elif not run.fired and not run.crash_groups:
        yield "not exercised", "a failure: no fault struck, nothing was killed"
    for check in verdict.checks:
        if check.status is Status.not_verified and not check.is_needed:
            yield "not covered", f"{check.name}: {check.detail}"


def _of_sweep(sweep: SweepFacts) -> Iterator[tuple[str, str]]:
    if sweep.missing:
        names = "; ".join(" ".join(part) for part in sweep.missing[:3])
        more = f"; and {len(sweep.missing) - 3} more" if len(sweep.missing) > 3 else ""
        yield "not run", f"{counted(len(sweep.missing), 'cell')} of the command line never began: {names}{more}"
    for name in sweep.strangers:
        yield (
            "not read",
            f"{name}/ holds a run that summary.json does not know: of another sweep, or begun by hand",
        )
    for text in sweep.unread:
        yield "not read", text
