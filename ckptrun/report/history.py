"""What one run did, start by start and rank by rank: steps, saves, kills, work that was lost. Torch-free.

Steps come from the ledgers, saves and their costs from ``events.jsonl``, where the place of a line among those of the
steps says between which of them a commit was seen.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptrun.evidence.run_folder import LEDGER, PROOF
from ckptrun.report.run_facts import RunFacts
from ckptrun.report.sound import is_sound_event

__all__ = ["Costs", "History", "Lane", "Losses", "SaveMark", "Strike", "costs_of", "read_history"]

_MOST_BYTES = 64 << 20
_RANK_FILE = re.compile(r"rank_(\d+)\.jsonl")


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveMark:
    """A checkpoint that was committed."""

    start: int
    step: int
    folder: str
    noted_after: int
    """The last step that was written down before the commit was."""
    blocked_seconds: float | None
    """Request and staging, and with a synchronous save all of it; None: nobody measures that of a foreign job."""
    background_seconds: float | None
    """Writing, from the end of staging to the commit."""
    bytes: int | None

    @property
    def bytes_per_second(self) -> float | None:
        """By the whole time from the request to the commit."""
        seconds = (self.blocked_seconds or 0.0) + (self.background_seconds or 0.0)
        return self.bytes / seconds if self.bytes is not None and seconds else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """The steps that one rank took in one start."""

    start: int
    rank: int
    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Strike:
    """A fault that has struck."""

    start: int | None
    """In which start; None: it fits none of them."""
    rank: int
    step: int
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """A line of the plot: losses of one start of one rank."""

    label: str
    start: int | None
    """None: the reference."""
    points: Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What saving and being killed cost one run, over all its starts."""

    saves: int
    blocked_seconds: float | None
    background_seconds: float | None
    bytes: int | None
    lost_steps: int
    """Steps that were done, and done again after a resume."""
    lost_seconds: float | None
    """What they took on rank 0 the first time; None: no file says it."""

    @property
    def bytes_per_second(self) -> float | None:
        """By the whole time from requests to commits."""
        seconds = (self.blocked_seconds or 0.0) + (self.background_seconds or 0.0)
        return self.bytes / seconds if self.bytes and seconds else None


@dataclass(slots=True, kw_only=True)
class History:
    """One run."""

    lanes: list[Lane] = field(default_factory=list)
    saves: list[SaveMark] = field(default_factory=list)
    strikes: list[Strike] = field(default_factory=list)
    resumes: list[tuple[int, int]] = field(default_factory=list)
    """Start and the step that it went on from."""
    losses: list[Losses] = field(default_factory=list)
    infinite: int = 0
    """How many losses are no finite number, and stand in no plot."""
    unread: list[str] = field(default_factory=list)

    @property
    def ranks(self) -> list[int]:
        """Of which there is a ledger with a step in it."""
        return sorted({lane.rank for lane in self.lanes})

    @property
    def steps(self) -> int:
        """The last step that there is anything to draw of."""
        taken = [lane.last for lane in self.lanes] + [step for line in self.losses for step, _ in line.points]
        return max([*taken, *(strike.step for strike in self.strikes)], default=0)


def costs_of(run: RunFacts, history: "History | None" = None) -> Costs:
    """Add up what the events say; where they tell of no step, as with a foreign job, the ledger of rank 0 does.

    Args:
        run: Whose.
        history: Where it was read already.
    """
    saves, steps, begun = list(_saves(run.events)), list(_steps(run.events)), dict(_resumes(run.events))
    measured = [save for save in saves if save.blocked_seconds is not None]
    lost = [(step, seconds) for start, step, seconds in steps if step > begun.get(start + 1, math.inf)]
    lost_steps = len(lost)
    if not steps and history is not None:
        ends = {lane.start: lane.last for lane in history.lanes if lane.rank == 0}
        lost_steps = sum(max(0, last - begun.get(start + 1, last)) for start, last in ends.items())
    return Costs(
        saves=len(saves),
        blocked_seconds=sum(save.blocked_seconds or 0.0 for save in measured) if measured else None,
        background_seconds=sum(save.background_seconds or 0.0 for save in measured) if measured else None,
        bytes=sum(save.bytes or 0 for save in measured) if measured else None,
        lost_steps=lost_steps,
        lost_seconds=sum(seconds for _, seconds in lost if seconds is not None) if steps else None,
    )


def read_history(run: RunFacts) -> History:
    """Read ledgers and events of a run, and the losses of its reference."""
    history = History(saves=list(_saves(run.events)), resumes=_resumes(run.events))
    for rank, path in _ledgers(run.folder):
        lines = _lines(path, history.unread)
        starts = sorted({line["start"] for line in lines})
        for start in starts:
            taken = [line["step"] for line in lines if line["start"] == start]
            history.lanes.append(Lane(start=start, rank=rank, first=min(taken), last=max(taken)))
        if rank == 0:
            for start in starts:
                mine = [line for line in lines if line["start"] == start]
                history.losses.append(_losses(f"start {start + 1}", start, mine, history))
    for place in (run.folder / PROOF / "reference", run.folder / "crash" / "reference"):
        for rank, path in _ledgers(place):
            if rank == 0:
                history.losses.insert(0, _losses("reference", None, _lines(path, history.unread), history))
    history.strikes = _strikes(run, history.lanes)
    return history


def _losses(label: str, start: int | None, lines: Sequence[Mapping[str, Any]], history: History) -> Losses:
    points = []
    for line in lines:
        loss = _number(line.get("loss"))
        if loss is not None and math.isfinite(loss):
            points.append((line["step"], loss))
        elif loss is not None:
            history.infinite += 1
    return Losses(label=label, start=start, points=points)


def _number(text: Any) -> float | None:
    try:
        return float.fromhex(text) if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None


def _ledgers(folder: Path) -> list[tuple[int, Path]]:
    named = [(_RANK_FILE.fullmatch(path.name), path) for path in (folder / LEDGER).glob("rank_*.jsonl")]
    return sorted((int(found[1]), path) for found, path in named if found is not None)


def _lines(path: Path, unread: list[str]) -> list[dict[str, Any]]:
    """The whole lines of a ledger; one that is too large to be read for a page is told."""
    size = path.stat().st_size
    if size > _MOST_BYTES:
        unread.append(f"{path.parent.name}/{path.name} has {size:,} bytes and was not read for this page")
        return []
    found = []
    for raw in path.read_bytes().splitlines():
        try:
            line = json.loads(raw)
        except ValueError:
            continue
        if isinstance(line, dict) and is_sound_event({"event": "step", **line}) and line.get("step") is not None:
            found.append({"step": line["step"], "start": line.get("start") or 0, "loss": line.get("loss")})
    return found


def _by_start(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    start = 0
    for event in events:
        if event["event"] == "launch":
            start = int(event.get("start") or 0)
        yield start, event


def _saves(events: Sequence[Mapping[str, Any]]) -> Iterator[SaveMark]:
    last = 0
    for start, event in _by_start(events):
        if event["event"] in ("start", "step"):
            last = int(event.get("step") or 0)
        elif event["event"] == "commit":
            step = int(event.get("step") or 0)
            is_measured = "blocked_seconds" in event
            yield SaveMark(
                start=start,
                step=step,
                folder=Path(str(event.get("folder", ""))).name,
                noted_after=max(last, step),
                blocked_seconds=event["blocked_seconds"] if is_measured else None,
                background_seconds=event.get("background_seconds") if is_measured else None,
                bytes=event.get("bytes") if is_measured else None,
            )


def _steps(events: Sequence[Mapping[str, Any]]) -> Iterator[tuple[int, int, float | None]]:
    """Start, step, and what it took on rank 0."""
    for start, event in _by_start(events):
        if event["event"] == "step":
            yield start, int(event.get("step") or 0), event.get("seconds")


def _resumes(events: Sequence[Mapping[str, Any]]) -> list[tuple[int, int]]:
    return [(start, int(event.get("step") or 0)) for start, event in _by_start(events) if event["event"] == "start"]


def _strikes(run: RunFacts, lanes: Sequence[Lane]) -> list[Strike]:
    """Put each fault to the start in which it has struck: each later one strikes in a later start, or the same."""
    found: list[Strike] = []
    earliest = 0
    for fault in run.fired:
        fits = [
            lane.start
            for lane in lanes
            if lane.rank == fault.rank and lane.start >= earliest and lane.first <= fault.step <= lane.last + 1
        ]
        start = min(fits, default=None)
        found.append(Strike(start=start, rank=fault.rank, step=fault.step, text=str(fault)))
        if start is not None and not fault.kind.is_silent:
            same = [other for other in run.fired if other.index == fault.index]
            earliest = start if fault is not same[-1] else start + 1
    return found
