"""What a sweep tells of its cells: a table for people, ``summary.json``, ``junit.xml``, ``report.html``. Torch-free."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptrun import __version__
from ckptrun.console import say
from ckptrun.evidence.run_folder import REPORT
from ckptrun.exit_codes import ExitCode
from ckptrun.files import write_json, write_text
from ckptrun.report.write import leave_report
from ckptrun.sweep.cell import Cell, CellVerdict, sweep_exit_code
from ckptrun.sweep.junit import junit_xml
from ckptrun.text import cut_text
from ckptrun.tools.output import Column, Output

__all__ = ["SweepRecord", "cells_of_last", "was_made_by_sweep"]

_UNENDED = "did not end: the sweep was ended while it ran"
_COLUMNS = (Column("cell"), Column("verdict"), Column("seconds", right=True), Column("reason"))
_REASON_WIDTH = 100
# A report is written after a cell where that takes at most this share of the time since the last one.
_REPORT_SHARE = 0.02


class SweepRecord:
    """The cells so far. The files are replaced before and after each cell: an ended sweep leaves what it has.

    Args:
        folder: The folder of the sweep, which exists.
        command: The command line, for the report.
        is_silent: Whether to keep the cells only: another rank writes and speaks.
    """

    def __init__(self, folder: Path, *, command: Sequence[str], is_silent: bool) -> None:
        self._folder = folder
        self._command = list(command)
        self._is_silent = is_silent
        self._is_finished = False
        self._began = time.monotonic()
        self._next_report = 0.0
        self._by_place: dict[int, Cell] = {}

    @property
    def cells(self) -> list[Cell]:
        """Those of which something is known, in the order of the sweep."""
        return [self._by_place[place] for place in sorted(self._by_place)]

    def put(self, place: int, cell: Cell) -> None:
        """Note what is known of a cell.

        Args:
            place: In the order of the sweep, from 0.
            cell: What it is, or has come to.
        """
        self._by_place[place] = cell
        self._write()

    def write_report(self) -> None:
        """Write ``report.html`` of what there is."""
        if self._is_silent:
            return
        began = time.monotonic()
        leave_report(self._folder)
        now = time.monotonic()
        self._next_report = now + (now - began) / _REPORT_SHARE

    def begin(self, place: int, name: str, overrides: Sequence[str], *, identity: str) -> None:
        """Note that a cell is going to run; it counts as failed until it has ended."""
        verdict, overrides = CellVerdict.failed, tuple(overrides)
        cell = Cell(name=name, overrides=overrides, verdict=verdict, exit_code=None, reason=_UNENDED, identity=identity)
        self.put(place, cell)

    def end(self, place: int, **found: Any) -> Cell:
        """Note, and return, what a cell that has begun came to: the other fields of :class:`Cell`.

        Writes the report too, where that is cheap.
        """
        cell = replace(self._by_place[place], **found)
        self.put(place, cell)
        if time.monotonic() >= self._next_report:
            self.write_report()
        return cell

    def finish(self, *, is_complete: bool = True) -> ExitCode:
        """Print the table of all cells; write the report; return the exit code of the sweep.

        Args:
            is_complete: Whether no cell is missing because the sweep was told to end.
        """
        self._is_finished = is_complete
        self._write()
        self.write_report()
        if not self._is_silent:
            rows = [
                (cell.name, cell.verdict, f"{cell.seconds:.1f}", cut_text(cell.reason.split("\n", 1)[0], _REASON_WIDTH))
                for cell in self.cells
            ]
            say("")
            Output(plain=False).table(_COLUMNS, rows)
            say(f"\n  {self._folder / REPORT}")
        return self._exit_code

    @property
    def _exit_code(self) -> ExitCode:
        return sweep_exit_code(cell.verdict for cell in self.cells)

    def _write(self) -> None:
        if not self._is_silent:
            whole = {
                "ckptrun": __version__,
                "command": self._command,
                "is_finished": self._is_finished,
                "exit_code": self._exit_code if self._is_finished else None,
                "seconds": round(time.monotonic() - self._began, 3),
            }
            cells = [cell.as_json() for cell in self.cells]
            write_json(self._folder / "summary.json", {**whole, "cells": cells})
            write_text(self._folder / "junit.xml", junit_xml(self._folder.name, self.cells))


def cells_of_last(folder: Path) -> dict[str, Cell]:
    """What the cells of the last sweep in ``folder`` came to, by name; without those that were not run."""
    try:
        content = json.loads((folder / "summary.json").read_text())["cells"]
        return {cell["path"]: Cell.from_json(cell) for cell in content if cell["path"] is not None}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def was_made_by_sweep(folder: Path) -> bool:
    """Whether ``folder`` holds the summary of a sweep."""
    try:
        return "cells" in json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError, TypeError):
        return False
