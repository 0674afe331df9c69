"""What a sweep tells of its cells: lines and a table for people, ``summary.json`` and ``junit.xml``. Torch-free."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckptrun.console import say
from ckptrun.exit_codes import ExitCode
from ckptrun.files import write_json, write_text
from ckptrun.sweep.cell import Cell, CellVerdict, SaveFigures, sweep_exit_code
from ckptrun.sweep.junit import junit_xml
from ckptrun.text import cut_text
from ckptrun.tools.output import Column, Output

__all__ = ["SweepRecord", "was_made_by_sweep"]

_UNENDED = "did not end: the sweep was ended while it ran"
_COLUMNS = (Column("cell"), Column("verdict"), Column("seconds", right=True), Column("reason"))
_REASON_WIDTH = 100


class SweepRecord:
    """The cells so far. Both files are replaced before and after each cell: an ended sweep leaves what it has.

    Args:
        folder: The folder of the sweep, which exists.
        is_silent: Whether to keep the cells only: another rank writes and speaks.
    """

    def __init__(self, folder: Path, *, is_silent: bool) -> None:
        self._folder = folder
        self._is_silent = is_silent
        self._cells: list[Cell] = []

    def skip(self, name: str, overrides: Sequence[str], reason: str) -> None:
        """Note a cell that is not run."""
        self._add(name, overrides, verdict=CellVerdict.skipped, exit_code=ExitCode.config, reason=reason)
        self.say_outcome()

    def begin(self, name: str, overrides: Sequence[str]) -> None:
        """Note that a cell is going to run; it counts as failed until it has ended."""
        self._add(name, overrides, verdict=CellVerdict.failed, exit_code=None, reason=_UNENDED)
        if not self._is_silent:
            say(f"\ncell {len(self._cells)}: {name}")

    def end(
        self, seconds: float, *, exit_code: int | None, verdict: CellVerdict, reason: str, save: SaveFigures | None
    ) -> None:
        """Note what the cell that has begun came to."""
        self._cells[-1] = replace(
            self._cells[-1], seconds=seconds, exit_code=exit_code, verdict=verdict, reason=reason, save=save
        )
        self._write()

    def say_outcome(self) -> None:
        """Print what the last cell came to."""
        cell = self._cells[-1]
        if not self._is_silent:
            reason = f": {cell.reason}" if cell.reason else ""
            say(f"cell {len(self._cells)}: {cell.name}: {cell.verdict.upper()} in {cell.seconds:.1f} s{reason}")

    def finish(self) -> ExitCode:
        """Print the table of all cells; return the exit code of the sweep."""
        if not self._is_silent:
            rows = [
                (cell.name, cell.verdict, f"{cell.seconds:.1f}", cut_text(cell.reason.split("\n", 1)[0], _REASON_WIDTH))
                for cell in self._cells
            ]
            say("")
            Output(plain=False).table(_COLUMNS, rows)
            say(f"\n  {self._folder / 'summary.json'}")
        return sweep_exit_code(cell.verdict for cell in self._cells)

    def _add(
        self, name: str, overrides: Sequence[str], *, verdict: CellVerdict, exit_code: int | None, reason: str
    ) -> None:
        self._cells.append(
            Cell(name=name, overrides=tuple(overrides), verdict=verdict, exit_code=exit_code, reason=reason)
        )
        self._write()

    def _write(self) -> None:
        if not self._is_silent:
            write_json(self._folder / "summary.json", {"cells": [cell.as_json() for cell in self._cells]})
            write_text(self._folder / "junit.xml", junit_xml(self._folder.name, self._cells))


def was_made_by_sweep(folder: Path) -> bool:
    """Whether ``folder`` holds the summary of a sweep."""
    try:
        return "cells" in json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError, TypeError):
        return False
