"""Cells that are not equal, put together by what is the matter with them, the worst first. Pure. Torch-free."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptrun.evidence.difference import Difference
from ckptrun.report.run_facts import RunFacts
from ckptrun.report.sound import dicts_of
from ckptrun.report.state import State
from ckptrun.report.sweep_facts import CellFacts
from ckptrun.text import counted, cut_text

__all__ = ["Cause", "DifferenceRow", "causes_of", "command_of", "difference_rows"]

_LONGEST = 220
_NAMES = ("run.dir", "run.name")
_DIGEST = re.compile(r"(?:first )?[0-9a-f]{16}(?:[0-9a-f]{16})?(?: [0-9a-f]{16,32})*")
# Check -> what is the matter, with the component that is blamed.
_TITLES: Mapping[str, str] = {
    "loaded_equals_saved": "the {blame} did not come back as it was saved",
    "saved_equals_live": "what was written of the {blame} is not what was live",
    "trajectory": "steps came out otherwise after a resume; to blame is the {blame}",
    "final_state": "the {blame} is another one at the end",
    "second_resume": "a resume from what a resumed run had saved differs; to blame is the {blame}",
    "replicas": "ranks that should hold the same {blame} do not",
    "saving_is_invisible": "a run that saves is another one than a run that does not",
    "saves_differ": "a later checkpoint holds the {blame} of an earlier one",
    "nothing_lost": "a resume did not go on from the newest checkpoint",
    "lost_work": "a resume did not go on from the newest complete checkpoint",
    "resume": "a resume ended in an error",
    "repeats": "steps that were done again came out otherwise; to blame is the {blame}",
    "controls": "a control has no effect",
    "faults": "a planned fault did not strike",
    "observed": "the probe has not heard everything",
    "outside_files": "legs shared a file",
    "finite": "the numbers are not finite",
    "data_order": "samples come in another order",
}
_CRASH = {
    "different": "goes on with other values, silently",
    "lost_work": "loses work: a complete checkpoint is passed over",
    "failed": "fails",
}


@dataclass(frozen=True, kw_only=True)
class Cause:
    """What is the matter with some cells."""

    state: State
    title: str
    cells: Sequence[CellFacts]
    """The first of them is the example."""
    check: str
    """The check that has decided; empty where none has."""
    reason: str
    first: Difference | None
    blame: str | None
    advice: str
    command: str
    """What shows it again; empty where no file says how."""
    left_by: Sequence[Mapping[str, Any]] = ()
    """Of crash states: what leaves such a state."""
    report: str = ""
    """The text for a trainer's tracker, seen from the folder of the cell."""


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """A line of what is told of a first difference."""

    name: str
    text: str


def causes_of(cells: Sequence[CellFacts]) -> list[Cause]:
    """Return the causes; none of cells that are equal or done."""
    found: dict[tuple[str, ...], list[CellFacts]] = {}
    causes: list[Cause] = []
    for cell in cells:
        if cell.state.is_good:
            continue
        if cell.run is not None and any(group.get("came_to") != "equal" for group in cell.run.crash_groups):
            causes += _crash_causes(cell, cell.run)
        else:
            found.setdefault(_key(cell), []).append(cell)
    causes += [_cause(group) for group in found.values()]
    return sorted(causes, key=lambda cause: (list(State).index(cause.state), -len(cause.cells)))


def difference_rows(first: Difference) -> list[DifferenceRow]:
    """Return everything that is known of a first difference, for people."""
    where = [f"{name} {value}" for name, value in (("step", first.step), ("rank", first.rank)) if value is not None]
    found: dict[str, Any] = {"first at": ", ".join(where) or None, "leaf": first.leaf}
    if first.index:
        found["element"] = f"[{', '.join(map(str, first.index))}]"
    if first.component and first.component != (first.leaf or "").partition(".")[0]:
        found["component"] = first.component
    for side in ("expected", "got"):
        value, bits = getattr(first, side), first.details.get(f"{side}_bits")
        if value is not None or bits:
            kind = "digest " if isinstance(value, str) and _DIGEST.fullmatch(value) else ""
            found[side] = f"{kind}{value}" + (f"   bits {bits}" if bits else "")
    if first.ulp is not None:
        found["apart"] = f"{first.ulp:,} ULP"
    for name in ("operation", "entry"):
        if first.details.get(name) is not None:
            found[name] = first.details[name]
    return [DifferenceRow(name, str(value)) for name, value in found.items() if value is not None]


def command_of(cell: CellFacts) -> str:
    """Return one command that runs a cell again, by itself; empty where no file says how."""
    if cell.overrides:
        words = [text for text in cell.overrides if text.partition("=")[0] not in _NAMES]
        return shlex.join(["python", "-m", "ckptrun", *words])
    return cell.run.command if cell.run is not None else ""


def _key(cell: CellFacts) -> tuple[str, ...]:
    """What cells with the same cause have in common."""
    run = cell.run if cell.state is not State.skipped else None
    check, blame, leaf, advice = "", "", "", ""
    if run is not None and run.verdict is not None:
        check, blame, advice = run.deciding, run.verdict.blame or "", run.verdict.advice
        leaf = _leaf_kind(run.first)
    # A failure says in its own words what it is; a difference is known by check, blame and leaf.
    words = "" if leaf else _without_numbers(_first_line(cell.reason))
    return (cell.state.value, check, blame, leaf, advice, words)


def _leaf_kind(first: Difference | None) -> str:
    """A leaf without whose it is: ``optimizer.state.first.bias.exp_avg`` is an ``exp_avg`` of the optimizer."""
    if first is None or not first.leaf:
        return ""
    return f"{first.component}:{_without_numbers(first.leaf.rpartition('.')[2])}"


def _cause(cells: Sequence[CellFacts]) -> Cause:
    # The one with the most to tell is the example.
    example = max(cells, key=lambda cell: cell.run is not None and cell.run.first is not None)
    run = example.run if example.state is not State.skipped else None
    verdict = run.verdict if run is not None else None
    return Cause(
        state=example.state,
        title=_title(example, run),
        cells=[example, *(cell for cell in cells if cell is not example)],
        check=run.deciding if run is not None else "",
        reason=verdict.reason if verdict is not None and verdict.reason else example.reason,
        first=run.first if run is not None else None,
        blame=verdict.blame if verdict is not None else None,
        advice=verdict.advice if verdict is not None else "",
        command=command_of(example),
    )


def _title(cell: CellFacts, run: RunFacts | None) -> str:
    if cell.state is State.skipped:
        return cut_text(_first_line(cell.reason), _LONGEST) or "no reason is told"
    if cell.state is State.unfinished:
        return cut_text(_first_line(cell.reason).removeprefix("did not end: "), _LONGEST)
    verdict = run.verdict if run is not None else None
    if run is not None and verdict is not None and cell.state in (State.different, State.not_verified):
        if cell.state is State.not_verified and ": not deterministic" in verdict.reason[:60]:
            return "the job does not repeat itself, killed or not"
        if verdict.reason.startswith(f"{run.deciding}: hidden state"):
            return f"hidden state, in no checkpoint, decides what comes next; to blame is the {verdict.blame or 'job'}"
        title = _TITLES.get(run.deciding)
        if title is not None and (verdict.blame or "{blame}" not in title):
            return title.format(blame=verdict.blame)
        if title is not None:
            return title.split("; to blame")[0].replace("the {blame}", "the state").replace("{blame}", "state")
    events = run.events if run is not None else ()
    said = [event for event in events if event["event"] == "failure" and not event.get("secondary")]
    if cell.state is State.failed and said:
        return f"rank {said[-1].get('rank')}: {cut_text(_first_line(str(said[-1].get('text'))), _LONGEST)}"
    return cut_text(_first_line(cell.reason) or cell.state.words, _LONGEST)


def _crash_causes(cell: CellFacts, run: RunFacts) -> list[Cause]:
    """The causes that the crash states of one proof are put together by, in the order of ``repro/``."""
    causes = []
    groups = [group for group in run.crash_groups if group.get("came_to") != "equal"]
    for number, group in enumerate(groups, start=1):
        came, text = str(group.get("came_to")), str(group.get("text") or "")
        script = run.folder / "repro" / f"{number:02d}" / "reproduce.sh"
        states = counted(int(group.get("states") or 0), "state")
        causes.append(
            Cause(
                state=State.failed if came == "failed" else State.different,
                title=f"{states} that a crash within a save can leave: a resume {_CRASH.get(came, came)}: "
                f"{cut_text(_first_line(text), _LONGEST).rstrip(': ')}",
                cells=[cell],
                check=run.deciding,
                reason=text,
                first=run.first if number == 1 else None,
                blame=group.get("component"),
                advice=run.verdict.advice if run.verdict is not None else "",
                command=shlex.quote(str(script)) if script.is_file() else command_of(cell),
                left_by=dicts_of(group.get("left_by")),
                report=f"repro/{number:02d}/report.md" if script.is_file() else "",
            )
        )
    return causes


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0].strip()


def _without_numbers(text: str) -> str:
    return re.sub(r"/\S+", "/#", re.sub(r"\d+", "#", text))
