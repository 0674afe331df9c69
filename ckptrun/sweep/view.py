"""What a person sees of a sweep while it runs: a line per cell, and on a terminal what runs now. Torch-free."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from ckptrun.console import has_colour, say
from ckptrun.sweep.cell import Cell, CellVerdict
from ckptrun.text import printable

__all__ = ["SweepView"]

_QUIET = (CellVerdict.equal, CellVerdict.done, CellVerdict.skipped)
_MOST_LINES = 60
_STYLES = {
    CellVerdict.equal: "green",
    CellVerdict.done: "green",
    CellVerdict.different: "bold red",
    CellVerdict.failed: "bold red",
    CellVerdict.not_verified: "yellow",
    CellVerdict.skipped: "dim",
}


class SweepView:
    """Prints.

    Args:
        total: How many cells there are, with those that are not run.
        parallel: How many run at a time.
    """

    def __init__(self, total: int, *, parallel: int) -> None:
        self._total = total
        self._parallel = parallel
        self._done = 0
        self._seconds: list[float] = []
        self._live: Live | None = None
        if has_colour():
            self._live = Live(console=Console(file=sys.stdout), refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live is not None:
            self._live.stop()

    def began(self, place: int, name: str) -> None:
        """A cell begins, the one at a place (from 0) of the sweep."""
        if self._live is None:
            say(f"cell {place + 1}: {printable(name)}")

    def ended(self, place: int, cell: Cell, log: Path | None = None) -> None:
        """A cell has ended, or is not run; of one that is not as it should be, also what it printed."""
        self._done += 1
        if log is not None:
            self._seconds.append(cell.seconds)
        reason = f": {cell.reason.partition(chr(10))[0]}" if cell.reason else ""
        line = f"cell {place + 1}: {cell.name}: {cell.verdict.upper()} in {cell.seconds:.1f} s{reason}"
        told = [] if log is None or cell.verdict in _QUIET else _tail(log)
        if self._live is None:
            say("\n".join([printable(line), *(f"    {text}" for text in told)]))
            return
        self._live.console.print(Text(printable(line), style=_STYLES[cell.verdict]))
        for text in told:
            self._live.console.print(Text(f"    {text}"))

    def show(self, running: Mapping[str, float], *, waiting: int) -> None:
        """Show, on a terminal, which cells run for how many seconds, and how many wait."""
        if self._live is not None:
            self._live.update(Text("\n".join(self._lines(running, waiting))))

    def _lines(self, running: Mapping[str, float], waiting: int) -> list[str]:
        left = self.seconds_left(running, waiting=waiting)
        until = (
            "" if left is None else f", done at about {time.strftime('%H:%M:%S', time.localtime(time.time() + left))}"
        )
        head = f"{self._done} of {self._total} cells{until}"
        return [head, *(f"  {seconds:6.0f} s  {printable(name)}" for name, seconds in running.items())]

    def seconds_left(self, running: Mapping[str, float], *, waiting: int) -> float | None:
        """How long it will still take, if the other cells take as long as those that have ended; None: none has."""
        if not self._seconds:
            return None
        usual = sum(self._seconds) / len(self._seconds)
        rest = sum(max(0.0, usual - seconds) for seconds in running.values())
        return (rest + waiting * usual) / self._parallel


def _tail(log: Path) -> list[str]:
    try:
        lines = log.read_text(errors="replace").rstrip("\n").split("\n")
    except OSError:
        return []
    cut = [f"... {len(lines) - _MOST_LINES} lines more in {log}"] if len(lines) > _MOST_LINES else []
    return [*cut, *map(printable, lines[-_MOST_LINES:])]
