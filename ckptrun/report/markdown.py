"""The short form of a report for the page of a CI job: ``summary.md``. Torch-free."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckptrun.evidence.run_folder import MARKDOWN
from ckptrun.report.causes import Cause
from ckptrun.report.page import Page
from ckptrun.report.state import State
from ckptrun.text import cut_text

__all__ = ["append_to_ci", "markdown_of"]

_MOST_CAUSES, _MOST_ROWS, _MOST_UNCOVERED = 8, 60, 15
_CI_PAGE = "GITHUB_STEP_SUMMARY"
# What Markdown or the HTML in it would take for more than text.
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+!|~&-])")


def markdown_of(page: Page) -> str:
    """Return what came out, the causes with a command each, the matrix, what was not covered; at most some 60 kB."""
    return "\n".join(_lines(page)) + "\n"


def append_to_ci(folder: Path) -> None:
    """Put the ``summary.md`` of a folder on the page of the CI job, where there is one (``$GITHUB_STEP_SUMMARY``)."""
    place, source = os.environ.get(_CI_PAGE), folder / MARKDOWN
    if place and source.is_file():
        with Path(place).open("a", encoding="utf-8") as file:
            file.write(source.read_text(encoding="utf-8") + "\n")


def _lines(page: Page) -> Iterator[str]:
    glyph = page.worst.glyph if page.worst is not None else "-"
    yield f"## {glyph} {_plain(page.sentence)}"
    yield ""
    facts = "; ".join(f"{name} {value}" for name, value in page.facts)
    yield f"{_plain(page.kind)} {_plain(page.name)}: {_plain(facts)}. All of it stands in report.html, beside this."
    for cause in page.causes[:_MOST_CAUSES]:
        yield from _cause(page, cause)
    if len(page.causes) > _MOST_CAUSES:
        yield f"\n{len(page.causes) - _MOST_CAUSES} further causes stand in report.html."
    if page.matrix is not None and page.cells:
        yield from _matrix(page)
    yield "\n### Not covered\n"
    for one in page.uncovered[:_MOST_UNCOVERED]:
        where = f" ({len(one.cells)} of {len(page.cells)} cells)" if page.matrix is not None and one.cells else ""
        yield f"- **{one.kind}** {_plain(cut_text(one.text, 300))}{where}"
    if len(page.uncovered) > _MOST_UNCOVERED:
        yield f"- {len(page.uncovered) - _MOST_UNCOVERED} further lines stand in report.html."
    if not page.uncovered:
        yield "Nothing that the files tell of was left out."


def _cause(page: Page, cause: Cause) -> Iterator[str]:
    number = f" ({len(cause.cells)} of {len(page.cells)} cells)" if page.matrix is not None else ""
    yield f"\n### {cause.state.glyph} {cause.state.words}: {_plain(cause.title)}{number}\n"
    if cause.first is not None:
        rows = [(row.name, cut_text(row.text, 300)) for row in page.rows(cause.first)]
        yield from _table(["first difference", ""], rows)
        yield ""
    if cause.blame:
        yield f"To blame: **{_plain(cause.blame)}**. {_plain(cause.advice)}"
    elif cause.advice:
        yield _plain(cause.advice)
    if cause.command and cause.state is not State.skipped:
        longest = max((len(ticks) for ticks in re.findall("`+", cause.command)), default=0)
        fence = "`" * max(3, longest + 1)
        yield f"\n{fence}\n{cut_text(cause.command, 1500)}\n{fence}"


def _matrix(page: Page) -> Iterator[str]:
    matrix = page.matrix
    if matrix is None:
        return
    yield "\n### All cells\n"
    keys = matrix.column_keys
    columns = [" ".join(f"{k}={matrix.shown[k][v]}" for k, v in zip(keys, at, strict=True)) for at in matrix.columns]
    rows = []
    for row in matrix.rows[:_MOST_ROWS]:
        cells = [matrix.places.get((row, column), ()) for column in matrix.columns]
        rows.append([*row, *("; ".join(f"{cell.state.glyph}{page.tile(cell)}" for cell in found) for found in cells)])
    yield from _table([*matrix.row_keys, *columns], rows)
    if len(matrix.rows) > _MOST_ROWS:
        yield f"\n{len(matrix.rows) - _MOST_ROWS} further rows stand in report.html."
    yield "\n" + ", ".join(f"{state.glyph} {state.words} {number}" for state, number in page.counts)


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(_plain(title) or ' ' for title in titles)} |"
    yield f"|{'---|' * len(titles)}"
    for row in rows:
        yield f"| {' | '.join(_plain(cell) or ' ' for cell in row)} |"


def _plain(text: str) -> str:
    """A text as it is, whatever it holds, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
