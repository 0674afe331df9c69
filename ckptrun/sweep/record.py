"""What a sweep tells of its cells: lines, a table, ``summary.json``, ``junit.xml``, ``report.html``. Torch-free."""

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckptrun import __version__
from ckptrun.console import say
from ckptrun.evidence.run_folder import REPORT
from ckptrun.exit_codes import ExitCode
from ckptrun.files import write_json, write_text
from ckptrun.report.write import leave_report
from ckptrun.sweep.cell import Cell, CellVerdict, SaveFigures, sweep_exit_code
from ckptrun.sweep.junit import junit_xml
from ckptrun.text import cut_text
from ckptrun.tools.output import Column, Output

__all__ = ["SweepRecord", "was_made_by_sweep"]

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
        self.cells: list[Cell] = []

    def skip(self, name: str, overrides: Sequence[str], reason: str) -> None:
        """Note a cell that is not run."""
        self._add(name, overrides, verdict=CellVerdict.skipped, exit_code=ExitCode.config, reason=reason)
        self.say_outcome()

    def begin(self, name: str, overrides: Sequence[str]) -> None:
        """Note that a cell is going to run; it counts as failed until it has ended."""
        self._add(name, overrides, verdict=CellVerdict.failed, exit_code=None, reason=_UNENDED)
        if not self._is_silent:
            say(f"\ncell {len(self.cells)}: {name}")

    def end(
        self, seconds: float, *, exit_code: int | None, verdict: CellVerdict, reason: str, save: SaveFigures | None
    ) -> None:
        """Note what the cell that has begun came to; write the report too, where that is cheap."""
        self.cells[-1] = replace(
            self.cells[-1], seconds=seconds, exit_code=exit_code, verdict=verdict, reason=reason, save=save
        )
        self._write()
        if time.monotonic() >= self._next_report:
            self.write_report()

    def write_report(self) -> None:
        """Write ``report.html`` of what there is."""
        if self._is_silent:
            return
        began = time.monotonic()
        leave_report(self._folder)
        now = time.monotonic()
        self._next_report = now + (now - began) / _REPORT_SHARE

    def say_outcome(self) -> None:
        """Print what the last cell came to."""
        cell = self.cells[-1]
        if not self._is_silent:
            reason = f": {cell.reason}" if cell.reason else ""
            say(f"cell {len(self.cells)}: {cell.name}: {cell.verdict.upper()} in {cell.seconds:.1f} s{reason}")

    def finish(self) -> ExitCode:
        """Print the table of all cells; write the report; return the exit code of the sweep."""
        self._is_finished = True
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

    def _add(
        self, name: str, overrides: Sequence[str], *, verdict: CellVerdict, exit_code: int | None, reason: str
    ) -> None:
        self.cells.append(
            Cell(name=name, overrides=tuple(overrides), verdict=verdict, exit_code=exit_code, reason=reason)
        )
        self._write()

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


def was_made_by_sweep(folder: Path) -> bool:
    """Whether ``folder`` holds the summary of a sweep."""
    try:
        return "cells" in json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError, TypeError):
        return False
