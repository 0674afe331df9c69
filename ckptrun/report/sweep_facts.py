"""What lies in the folder of a sweep: its cells, those that never began, folders that no summary knows. Torch-free."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from ckptrun.report.run_facts import RunFacts, is_run, json_of, read_run
from ckptrun.report.sound import is_number, is_sound_cell, strings_of
from ckptrun.report.state import State
from ckptrun.text import counted

__all__ = ["CellFacts", "SweepFacts", "is_sweep", "read_sweep", "single"]

SUMMARY, RECORD = "summary.json", "multirun.yaml"
_NAMES = ("run.dir", "run.name")
_MOST_EXPANDED = 20_000


@dataclass(kw_only=True)
class CellFacts:
    """One cell of a sweep; or a proof that stands for itself, as the only one."""

    number: int
    """Counted from 1."""
    name: str
    overrides: Sequence[str]
    state: State
    exit_code: int | None
    reason: str
    seconds: float | None
    save: Mapping[str, Any] | None
    """What saving cost, as it stands in ``summary.json``."""
    run: RunFacts | None
    """None: nothing was started, or its folder is not there any more."""

    @cached_property
    def values(self) -> Mapping[str, str]:
        """Override -> its value; without those that only say where files go."""
        pairs = [text.lstrip("+").partition("=") for text in self.overrides]
        return {key: value for key, _, value in pairs if key not in _NAMES}

    @property
    def anchor(self) -> str:
        """Names its place on the page."""
        return f"cell-{self.number}"


@dataclass(kw_only=True)
class SweepFacts:
    """A sweep, from its files."""

    folder: Path
    cells: Sequence[CellFacts]
    exit_code: int | None
    is_finished: bool | None
    """None: an older version has written it, and does not say."""
    seconds: float | None
    command: Sequence[str]
    version: str | None
    missing: Sequence[Sequence[str]]
    """The overrides of cells that were asked for and that no summary has."""
    strangers: Sequence[str]
    """Folders of runs that no summary has."""
    unread: Sequence[str]


def is_sweep(folder: Path) -> bool:
    """Whether ``folder`` is what a sweep leaves."""
    return (folder / RECORD).is_file() or (folder / SUMMARY).is_file()


def single(run: RunFacts) -> CellFacts:
    """Return a run or proof as the only cell; of one that is part of a sweep also what that has overridden."""
    return CellFacts(
        number=1,
        name=run.folder.name,
        overrides=_overrides_in_sweep(run.folder),
        state=run.state,
        exit_code=run.exit_code,
        reason=run.reason,
        seconds=run.seconds,
        save=None,
        run=run,
    )


def _overrides_in_sweep(folder: Path) -> tuple[str, ...]:
    entries = json_of(folder.parent / SUMMARY, []).get("cells")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("path") == folder.name:
            return tuple(strings_of(entry.get("overrides")))
    return ()


def read_sweep(folder: Path) -> SweepFacts:
    """Read what there is of a sweep, done or not."""
    unread: list[str] = []
    summary = json_of(folder / SUMMARY, unread)
    told = summary.get("cells")
    entries = [entry for entry in told if is_sound_cell(entry)] if isinstance(told, list) else []
    if isinstance(told, list) and len(entries) < len(told):
        unread.append(f"{counted(len(told) - len(entries), 'cell')} of {SUMMARY}: this version writes no such")
    cells = [_cell(folder, number, entry) for number, entry in enumerate(entries, start=1)]
    asked = _asked(folder, unread)
    known = {frozenset(cell.overrides) for cell in cells}
    names = {str(entry.get("path")) for entry in entries}
    there = sorted(path.name for path in folder.iterdir() if path.is_dir() and is_run(path))
    seconds, version = summary.get("seconds"), summary.get("ckptrun")
    code, finished = summary.get("exit_code"), summary.get("is_finished")
    return SweepFacts(
        folder=folder,
        cells=cells,
        exit_code=code if isinstance(code, int) else None,
        is_finished=finished if isinstance(finished, bool) else None,
        seconds=float(seconds) if is_number(seconds) else None,
        command=strings_of(summary.get("command")),
        version=version if isinstance(version, str) else None,
        missing=[overrides for overrides in asked if frozenset(overrides) not in known],
        strangers=[name for name in there if name not in names],
        unread=unread,
    )


def _cell(folder: Path, number: int, entry: Mapping[str, Any]) -> CellFacts:
    path, verdict, code = entry.get("path"), str(entry.get("verdict")), entry.get("exit_code")
    state = State(verdict) if verdict in State.__members__ else State.failed
    reason = str(entry.get("reason") or "")
    if verdict == "failed" and code is None and reason.startswith("did not end"):
        state = State.unfinished
    place = folder / str(path) if path else None
    run = read_run(place) if place is not None and place.is_dir() else None
    return CellFacts(
        number=number,
        name=str(path) if path else _name(entry),
        overrides=tuple(str(text) for text in entry.get("overrides") or ()),
        state=state,
        exit_code=code if isinstance(code, int) else None,
        reason=reason,
        seconds=entry.get("seconds"),
        save=entry.get("save") if isinstance(entry.get("save"), dict) else None,
        run=run,
    )


def _name(entry: Mapping[str, Any]) -> str:
    texts = [str(text) for text in entry.get("overrides") or ()]
    return " ".join(text for text in texts if text.lstrip("+").split("=")[0] not in _NAMES) or "cell"


def _asked(folder: Path, unread: list[str]) -> list[tuple[str, ...]]:
    """The cells that the command line asked for, in order, as Hydra has written it down."""
    path = folder / RECORD
    try:
        content = yaml.safe_load(path.read_text())
        texts = [str(text) for text in content["hydra"]["overrides"]["task"]]
        overrides = OverridesParser.create().parse_overrides(texts)
        values = [
            [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
            if one.is_sweep_override()
            else [str(one.input_line)]
            for one in overrides
        ]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, HydraException) as error:
        unread.append(f"{RECORD} cannot be read: {type(error).__name__}; whether cells are missing is not known")
        return []
    return list(itertools.islice(itertools.product(*values), _MOST_EXPANDED))
