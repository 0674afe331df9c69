"""What the page shows of one cell, worked out from its facts. Torch-free."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from ckptrun.evidence.run_folder import REPORT
from ckptrun.evidence.verdict import Check
from ckptrun.report.causes import DifferenceRow, command_of, difference_rows
from ckptrun.report.charts import losses_svg, shown_ranks, timeline_svg
from ckptrun.report.history import Costs, SaveMark, costs_of, read_history
from ckptrun.report.run_facts import Log, RunFacts
from ckptrun.report.sound import dicts_of, is_number
from ckptrun.report.state import State
from ckptrun.report.sweep_facts import CellFacts
from ckptrun.text import bytes_text, counted, cut_text

__all__ = ["CellView", "FullView", "blocked_of", "costs_text", "milliseconds"]

_MOST_SAVES, _MOST_LOGS = 40, 6
_REASON = 1200


@dataclass(frozen=True, slots=True)
class StartRow:
    """One start, for a table."""

    number: int
    origin: str
    ended: str
    ranks: str
    seconds: str


class CellView:
    """The line of a cell, and the little that is shown of it where there are hundreds.

    Args:
        cell: The cell.
        folder: Of the report, which links are seen from.
        has_line: Whether its own report is another page.
        name: What it is called.
    """

    def __init__(self, cell: CellFacts, folder: Path, *, has_line: bool, name: str) -> None:
        self.cell = cell
        self.name = name
        self.worst = list(State).index(cell.state)
        self.is_open = not has_line
        self.reason = cut_text(cell.reason, _REASON)
        self.blocked = blocked_of(cell)
        self.figures = ", ".join(_figures(cell, self.blocked))
        self.own_report = _own_report(cell, folder) if has_line else ""
        checks = cell.run.checks if cell.run is not None else ()
        self.good_checks = [check.name for check in checks if check.status.value == "equal"]
        first = cell.run.first if cell.run is not None else None
        self.find = " ".join(text for text in (*cell.overrides, first.leaf if first else "", cell.reason[:200]) if text)


class FullView(CellView):
    """All that is shown of a cell. Reads its ledgers and logs."""

    def __init__(self, cell: CellFacts, folder: Path, *, has_line: bool, name: str) -> None:
        super().__init__(cell, folder, has_line=has_line, name=name)
        run = cell.run
        self.command = command_of(cell) if has_line else ""
        self.checks: list[tuple[Check, State, list[DifferenceRow]]] = []
        self.faults: list[str] = []
        self.starts: list[StartRow] = []
        self.has_seconds = self.is_measured = False
        self.legs = self.costs = ""
        self.timeline = self.losses = Markup()
        self.hidden_ranks = self.infinite = self.more_saves = self.more_logs = 0
        self.saves: list[SaveMark] = []
        self.crash: list[Mapping[str, Any]] = []
        self.unread: list[str] = []
        self.logs: list[Log] = []
        if run is not None and cell.state is not State.skipped:
            self._fill(run)

    def _fill(self, run: RunFacts) -> None:
        self.checks = [
            (
                check,
                State(check.status.value),
                difference_rows(check.first_difference) if check.first_difference else [],
            )
            for check in run.checks
        ]
        struck = [f"struck: {fault}" for fault in run.fired]
        self.faults = [*(f"planned: {text}" for text in run.planned), *struck]
        history = read_history(run)
        self._fill_starts(run, dict(history.resumes))
        self.timeline, self.losses = timeline_svg(history), losses_svg(history)
        self.hidden_ranks = len(history.ranks) - len(shown_ranks(history))
        self.infinite = history.infinite
        self.saves, self.more_saves = history.saves[:_MOST_SAVES], max(0, len(history.saves) - _MOST_SAVES)
        self.is_measured = any(save.blocked_seconds is not None for save in history.saves)
        self.costs = costs_text(costs_of(run, history))
        self.crash = list(run.crash_groups)
        self.unread = [*run.unread, *history.unread]
        self.logs, self.more_logs = run.logs(_MOST_LOGS)

    def _fill_starts(self, run: RunFacts, began: Mapping[int, int]) -> None:
        told = dicts_of(run.more.get("starts"))
        legs = [
            leg
            for leg in dicts_of(run.more.get("legs"))
            if is_number(leg.get("seconds")) and isinstance(leg.get("start"), int)
        ]
        seconds = {leg.get("start"): leg.get("seconds") for leg in legs if leg.get("name") == "run"}
        ends: dict[int, str] = {}
        ranks: dict[int, Any] = {}
        start = 0
        for event in run.events:
            if event["event"] == "launch":
                start = int(event.get("start") or 0)
                ends[start] = "did not end by itself"
            elif event["event"] == "start":
                ranks[start] = event.get("world_size")
            elif event["event"] in ("end", "stopped", "preempted"):
                words = {"end": "complete", "stopped": "stopped as planned", "preempted": "saved and ended when told"}
                ends[start] = words[event["event"]]
            elif event["event"] == "failure" and not event.get("secondary"):
                ends[start] = f"failed: rank {event.get('rank')}: {cut_text(str(event.get('text')), 300)}"
        for number in ends:
            known = told[number] if number < len(told) else {}
            place = Path(str(known.get("resumed_from") or "")).name
            origin = f"step {began[number]}{f' ({place})' if place else ''}" if began.get(number) else "the beginning"
            took = seconds.get(number)
            self.starts.append(
                StartRow(
                    number + 1,
                    origin if number in began else "nothing: it loaded nothing",
                    ends[number],
                    str(ranks.get(number) or "not known"),
                    "" if took is None else f"{took:.1f}",
                )
            )
        self.has_seconds = any(row.seconds for row in self.starts)
        self.legs = ", ".join(
            f"{str(leg.get('name')).replace('_', ' ')} {leg.get('seconds')} s"
            for leg in legs
            if leg.get("name") != "run"
        )


def blocked_of(cell: CellFacts) -> float | None:
    """How long training waited for saves on rank 0; None: no file says it."""
    if cell.save is not None:
        blocked = cell.save.get("blocked_seconds")
        return float(blocked) if isinstance(blocked, int | float) else None
    return costs_of(cell.run).blocked_seconds if cell.run is not None else None


def milliseconds(seconds: float | None) -> str:
    """For people; that nobody has measured it is said too."""
    if seconds is None:
        return "not measured"
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.01 or not seconds else f"{seconds * 1000:.1f} ms"


def costs_text(costs: Costs) -> str:
    """What saving and being killed cost, in words."""
    parts = []
    if costs.blocked_seconds is not None:
        rate = costs.bytes_per_second
        parts.append(
            f"{counted(costs.saves, 'save')}: training waited {milliseconds(costs.blocked_seconds)}, "
            f"{milliseconds(costs.background_seconds)} more in the background, {bytes_text(costs.bytes or 0)}"
            + (f", {bytes_text(int(rate))}/s" if rate else "")
        )
    elif costs.saves:
        parts.append(f"{counted(costs.saves, 'save')}; what they cost was not measured")
    if costs.lost_steps:
        took = f", {costs.lost_seconds:.2f} s on rank 0" if costs.lost_seconds is not None else ""
        parts.append(f"time lost: {counted(costs.lost_steps, 'step')} done and done again{took}")
    return "; ".join(parts)


def _figures(cell: CellFacts, blocked: float | None) -> list[str]:
    found = [f"{cell.seconds:.1f} s"] if cell.seconds else []
    found += [f"blocked {milliseconds(blocked)}"] if blocked is not None else []
    return found


def _own_report(cell: CellFacts, folder: Path) -> str:
    if cell.run is None or not (cell.run.folder / REPORT).is_file():
        return ""
    return quote(str((cell.run.folder / REPORT).relative_to(folder)))
