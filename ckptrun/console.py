"""What a person sees: a progress bar on a terminal, plain lines elsewhere, a summary, errors. Torch-free."""

import contextlib
import os
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

__all__ = ["ProgressView", "has_colour", "say", "say_error", "say_interrupted", "short_path", "summarise"]


def has_colour() -> bool:
    """Whether the standard output is a terminal whose user has not asked for plain text (``NO_COLOR``)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say(text: str) -> None:
    """Print a line for a person."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def say_error(text: str) -> None:
    """Print an error for a person."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def say_interrupted() -> None:
    """Say that Ctrl-C has ended a run, which can go on."""
    say_error("ckptrun: interrupted. Run the same command again to resume from the newest checkpoint.")


def short_path(path: Path | str) -> str:
    """Return a local path as a user in the working folder would write it."""
    with contextlib.suppress(ValueError, OSError):
        return str(Path(path).relative_to(Path.cwd()))
    return str(path)


def aligned(rows: Mapping[str, str], *, width: int | None = None) -> str:
    """Return name-value rows as lines, aligned; values that go beyond ``width`` go on below, words kept whole."""
    names = max(map(len, rows))
    lines = []
    for name, value in rows.items():
        parts = [value] if width is None else _wrapped(value, width - names - 4)
        lines += [f"  {(name if not at else '').ljust(names)}  {part}".rstrip() for at, part in enumerate(parts)]
    return "\n".join(lines)


def _wrapped(text: str, width: int) -> list[str]:
    lines = text.splitlines() or [""]
    return [
        part
        for line in lines
        for part in textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) or [""]
    ]


def summarise(rows: Mapping[str, str]) -> None:
    """Print name-value rows, aligned."""
    say(aligned(rows))


class ProgressView:
    """The steps of a run as they pass.

    Args:
        steps: Steps of the whole run.
        done: Steps done before this start.
        every: Print a line every so many steps where there is no terminal.
        visible: False on ranks other than 0.
    """

    def __init__(self, steps: int, *, done: int, every: int, visible: bool) -> None:
        self._steps = steps
        self._every = every
        self._visible = visible
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if visible and sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("step"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=Console(file=sys.stdout),
            )
            self._task = self._bar.add_task("", total=steps, completed=done)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, step: int, text: str) -> None:
        """Show that ``step`` is done; ``text`` says what it came to."""
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif self._visible and (step % self._every == 0 or step in (1, self._steps)):
            say(f"step {step}/{self._steps}  {text}")
