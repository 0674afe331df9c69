"""What the tools print: rich tables and bars on a terminal, plain text in pipes and with ``--no-color``, or JSON.

Everything shown goes through :func:`~ckptrun.text.printable`: names and values come from files, and a file must
not be able to steer a terminal.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from ckptrun.console import say, say_error
from ckptrun.text import printable

__all__ = ["Column", "Output", "add_output_arguments"]

_INDENT = "  "


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table."""

    title: str
    right: bool = False
    style: str = ""


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--no-color``."""
    parser.add_argument("--json", action="store_true", help="print one JSON document, and nothing else")
    parser.add_argument("--no-color", action="store_true", help="plain text on a terminal too")


class Output:
    """Prints to the standard output; bars go to the standard error, beside it.

    Args:
        plain: No colour, no bars, no folding, whatever the output is.
    """

    def __init__(self, *, plain: bool) -> None:
        plain = plain or bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"
        self.is_rich = not plain and sys.stdout.isatty()
        self._has_bars = not plain and sys.stderr.isatty()

    def json(self, document: Mapping[str, Any]) -> None:
        """Print a document."""
        say(json.dumps(document, indent=2, allow_nan=False))

    def line(self, text: str = "", style: str = "") -> None:
        """Print a line."""
        if self.is_rich:
            _console().print(Text(printable(text), style=style), soft_wrap=True)
        else:
            say(printable(text))

    def note(self, text: str) -> None:
        """Print a line on the standard error, beside JSON too."""
        say_error(printable(text))

    def facts(self, rows: Mapping[str, str]) -> None:
        """Print name-value rows, aligned."""
        self.table([Column("", style="dim"), Column("")], rows.items())

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> None:
        """Print rows under the titles of their columns; no title at all where every title is empty."""
        safe = [[printable(cell) for cell in row] for row in rows]
        if self.is_rich:
            _console().print(_rich_table(columns, safe))
            return
        titles = [column.title for column in columns]
        shown = [titles, *safe] if any(titles) else safe
        widths = [max(map(len, cells), default=0) for cells in zip(*shown, strict=True)]
        lines = []
        for row in shown:
            cells = [
                cell.rjust(width) if column.right else cell.ljust(width)
                for cell, width, column in zip(row, widths, columns, strict=True)
            ]
            lines.append((_INDENT + "  ".join(cells)).rstrip())
        if lines:
            say("\n".join(lines))

    @contextlib.contextmanager
    def progress(self, label: str) -> Iterator[Callable[[int], Callable[[int], None]]]:
        """Show a bar on a terminal.

        What is yielded is called with the bytes in all once they are known; what that returns is called, in any thread,
        with how many more are done.
        """
        if not self._has_bars:
            yield lambda _: lambda _: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
        with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True) as bar:

            def started(total: int) -> Callable[[int], None]:
                task = bar.add_task(escape(printable(label)), total=total)
                return lambda count: bar.advance(task, count)

            yield started


def _console() -> Console:
    return Console(file=sys.stdout, highlight=False, markup=False)


def _rich_table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> Table:
    has_titles = any(column.title for column in columns)
    table = Table(box=None, show_header=has_titles, header_style="dim", padding=(0, 1))
    for column in columns:
        justify = "right" if column.right else "left"
        table.add_column(column.title, justify=justify, style=column.style, overflow="fold")  # type: ignore[arg-type]
    for row in rows:
        table.add_row(*map(Text, row))
    return table
