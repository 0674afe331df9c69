"""Finds out what a folder is, and writes its report: ``report.html`` and ``summary.md``. Torch-free."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jinja2 import TemplateError

from ckptrun.console import say_error
from ckptrun.errors import ConfigError
from ckptrun.evidence.run_folder import MARKDOWN, REPORT
from ckptrun.files import write_text
from ckptrun.report.changes import changes_of
from ckptrun.report.markdown import markdown_of
from ckptrun.report.page import page_of_run, page_of_sweep, render
from ckptrun.report.run_facts import is_run, read_run
from ckptrun.report.sweep_facts import is_sweep, read_sweep

__all__ = ["leave_report", "reported", "write_report"]

_NEVER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def write_report(folder: Path, *, against: Path | None = None) -> Path:
    """Write both files of a sweep, a proof or a run from what is on disk; return where the page is.

    Args:
        folder: Of the sweep, proof or run.
        against: Of an older sweep.

    Raises:
        ConfigError: There is nothing of that kind.
    """
    if is_sweep(folder):
        sweep = read_sweep(folder)
        changes = None
        if against is not None:
            if not is_sweep(against):
                raise ConfigError(
                    f"--against {against}: that is no sweep: neither summary.json nor multirun.yaml is there."
                )
            changes = changes_of(sweep.cells, read_sweep(against).cells, older=str(against))
        page = page_of_sweep(sweep, changes)
    elif is_run(folder):
        if against is not None:
            raise ConfigError(f"--against compares sweeps, and {folder} is none.")
        page = page_of_run(read_run(folder))
    else:
        raise ConfigError(
            f"{folder} holds no sweep, proof or run: none of summary.json, multirun.yaml, verdict.json, proof.json, "
            "events.jsonl and config.yaml is there."
        )
    place = folder / REPORT
    write_text(place, _writable(render(page)))
    write_text(folder / MARKDOWN, _writable(markdown_of(page)))
    return place


def _writable(text: str) -> str:
    """A text without what no file in UTF-8 holds, or no browser shows: names and messages may have anything."""
    return _NEVER.sub("\ufffd", text)


def leave_report(folder: Path) -> None:
    """Write the report at the end of a sweep or proof. What goes wrong with it is said, and changes no exit code."""
    try:
        write_report(folder)
    except (ConfigError, OSError, ValueError, LookupError, TypeError, AttributeError, TemplateError) as error:
        say_error(f"ckptrun: {folder / REPORT} was not written: {type(error).__name__}: {error}")


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Leave the report of a proof however the context ends: also of one that was interrupted, or came to nothing."""
    try:
        yield
    finally:
        leave_report(folder)
