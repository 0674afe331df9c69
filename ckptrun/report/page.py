"""A report as HTML: one file that works without a network, and for all that matters without JavaScript. Torch-free.

However many cells there are, the page stays within a size: first every cell is written in short, then those that are
worst off in full, as long as there is room; the page says how many are short, and each has a report of its own.
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ckptrun import __version__
from ckptrun.evidence.difference import Difference
from ckptrun.exit_codes import ExitCode
from ckptrun.report.axes import Matrix, matrix_of
from ckptrun.report.causes import Cause, DifferenceRow, causes_of, command_of, difference_rows
from ckptrun.report.cell_view import CellView, FullView, blocked_of, milliseconds
from ckptrun.report.changes import Changes
from ckptrun.report.charts import Bar, bars_svg
from ckptrun.report.history import costs_of
from ckptrun.report.run_facts import RunFacts, typed
from ckptrun.report.state import State, sentence_of
from ckptrun.report.sweep_facts import CellFacts, SweepFacts, single
from ckptrun.report.uncovered import Uncovered, uncovered_of
from ckptrun.text import bytes_text, counted, cut_text

__all__ = ["MOST_BYTES", "Page", "page_of_run", "page_of_sweep", "render"]

MOST_BYTES = 1_000_000
_SPARE = 60_000
_MOST_BARS = 40
_VAGUE = ("none", "null", "true", "false", "auto", "all", "full", "custom")
_EXIT_CODES = {
    ExitCode.done: "done, and everything that was asked to be proved is equal",
    ExitCode.failed: "something failed or was interrupted",
    ExitCode.config: "the config or the command line is wrong, or nothing was run",
    ExitCode.different: "a verdict is different",
    ExitCode.not_verified: "a verdict is not verified",
}


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the page says, but for what is read of each cell while it is written."""

    folder: Path
    kind: str
    name: str
    sentence: str
    facts: Sequence[tuple[str, str]]
    command: str
    """What was typed; empty where no file says it."""
    cells: Sequence[CellFacts]
    causes: Sequence[Cause]
    uncovered: Sequence[Uncovered]
    matrix: Matrix | None
    """None: it is no sweep."""
    changes: Changes | None
    """None: nobody has asked for it."""
    plots: Sequence[tuple[str, str, Markup]]
    read_at: str
    remake: str
    version: str = __version__
    above: str = ""
    """The sweep that it is a cell of; empty where it is of none."""
    bodies: Sequence[Markup] = ()
    cut: str = ""

    @property
    def worst(self) -> State | None:
        """What decides; None without a cell."""
        return min((cell.state for cell in self.cells), key=list(State).index, default=None)

    @property
    def counts(self) -> list[tuple[State, int]]:
        """How many cells came to what."""
        numbers = [(state, sum(cell.state is state for cell in self.cells)) for state in State]
        return [(state, number) for state, number in numbers if number]

    def label(self, cell: CellFacts) -> str:
        """A cell by what it differs in from the others."""
        if self.matrix is None:
            return cell.name
        swept = [key for key in cell.values if key not in self.matrix.shared]
        return " ".join(_told(key, self.matrix.shown[key][cell.values[key]]) for key in swept) or cell.name

    def name_of(self, cell: CellFacts) -> str:
        """The name of its folder; of a cell without one what it differs in."""
        return cell.name if cell.run is not None else self.label(cell)

    def tile(self, cell: CellFacts) -> str:
        """What stands in the matrix beside the glyph."""
        blocked = blocked_of(cell)
        return f" {milliseconds(blocked)}" if blocked is not None else f" {cell.state.words}"

    def hint(self, cell: CellFacts) -> str:
        """The state in words, for those who see no glyph."""
        return cut_text(f"{cell.state.words}{f': {cell.reason.strip()}' if cell.reason.strip() else ''}", 100)

    def rows(self, first: Difference) -> list[DifferenceRow]:
        """What is known of a first difference."""
        return difference_rows(first)


def page_of_run(run: RunFacts) -> Page:
    """Return what is said of one run or proof."""
    cell = single(run)
    causes = causes_of([cell])
    facts = _facts(run.exit_code, run.seconds, run.versions)
    return Page(
        folder=run.folder,
        kind=run.kind.capitalize(),
        name=run.folder.name,
        sentence=_sentence_of_run(run, causes),
        facts=facts,
        command=command_of(cell),
        cells=[cell],
        causes=causes,
        uncovered=uncovered_of([cell], None),
        matrix=None,
        changes=None,
        plots=(),
        read_at=_now(),
        remake=typed(["ckptrun", "report", str(run.folder)]),
        above=run.folder.absolute().parent.name if cell.overrides else "",
    )


def page_of_sweep(sweep: SweepFacts, changes: Changes | None) -> Page:
    """Return what is said of a sweep."""
    cells = sweep.cells
    causes = causes_of(cells)
    titles = [cause.title for cause in causes if cause.state is not State.skipped]
    worst = titles[0] if titles else ""
    worst += f"; and {counted(len(titles) - 1, 'further cause')}" if len(titles) > 1 else ""
    sentence = sentence_of([cell.state for cell in cells], worst=worst)
    if sweep.missing:
        sentence += f" {counted(len(sweep.missing), 'further cell')} never began."
    versions = {name: value for cell in cells if cell.run is not None for name, value in cell.run.versions.items()}
    seconds = sweep.seconds if sweep.seconds is not None else sum(cell.seconds or 0.0 for cell in cells)
    facts = _facts(sweep.exit_code, seconds, {"ckptrun": sweep.version, **versions} if sweep.version else versions)
    if sweep.is_finished is False:
        facts[0] = ("exit code", "none: it has not ended, or was ended")
    page = Page(
        folder=sweep.folder,
        kind="Sweep",
        name=sweep.folder.name,
        sentence=sentence,
        facts=facts,
        command=typed(sweep.command),
        cells=cells,
        causes=causes,
        uncovered=uncovered_of(cells, sweep),
        matrix=matrix_of(cells),
        changes=changes,
        plots=(),
        read_at=_now(),
        remake=typed(["ckptrun", "report", str(sweep.folder)]),
    )
    return _with(page, plots=_plots(page))


def render(page: Page) -> str:
    """Return the page as HTML."""
    environment = _environment()
    template = environment.get_template("page.html")
    fixed = {name: Markup(_text_of(f"{name}.{end}")) for name, end in (("style", "css"), ("script", "js"))}
    skeleton = template.render(page=page, **fixed)
    bodies, cut = _bodies(page, environment, room=MOST_BYTES - _SPARE - _size(skeleton))
    return template.render(page=_with(page, bodies=bodies, cut=cut), **fixed)


def _bodies(page: Page, environment: Environment, *, room: int) -> tuple[list[Markup], str]:
    """Every cell, in full where there is room for it, the worst off first."""
    parts = environment.get_template("cell.html").make_module({})
    has_line = page.matrix is not None

    def short(cell: CellFacts) -> Markup:
        view = CellView(cell, page.folder, has_line=has_line, name=page.name_of(cell))
        return Markup(parts.cell(view, parts.compact(view)))  # type: ignore[attr-defined]

    def full(cell: CellFacts) -> Markup:
        view = FullView(cell, page.folder, has_line=has_line, name=page.name_of(cell))
        return Markup(parts.cell(view, parts.full(view)))  # type: ignore[attr-defined]

    if not has_line:
        return [full(cell) for cell in page.cells], ""
    found = {cell.number: short(cell) for cell in page.cells}
    left = room - sum(_size(text) for text in found.values())
    is_short = 0
    for cell in sorted(page.cells, key=lambda cell: list(State).index(cell.state)):
        text = full(cell) if left > _SPARE // 2 else None
        more = _size(text) - len(found[cell.number].encode(errors="replace")) if text is not None else 0
        if text is None or more > left:
            is_short += 1
            continue
        found[cell.number], left = text, left - more
    cut = (
        f"{is_short:,} of {counted(len(page.cells), 'cell')} {'is' if is_short == 1 else 'are'} shown in short, to "
        "keep the page small: without timeline, losses, saves, costs and logs, which stand in the cell's own report "
        "(`ckptrun report` of its folder)."
        if is_short
        else ""
    )
    return [found[cell.number] for cell in page.cells], cut


def _sentence_of_run(run: RunFacts, causes: Sequence[Cause]) -> str:
    match run.state:
        case State.equal if run.crash_groups:
            return "Equal: every state of a crash within the save that was judged is resumed exactly."
        case State.equal if run.fired:
            return "Equal: killed and resumed, the run came out bit for bit as if nothing had happened."
        case State.equal:
            return "Equal: everything that was compared has the same bits. No fault struck."
        case State.done:
            return "Done. Nothing was asked to be proved."
        case State.unfinished:
            return f"Not finished: {run.reason.rstrip('.')}."
        case _ if len(causes) > 1:
            return f"{run.state.words.capitalize()}, by {len(causes)} causes; the first: {causes[0].title}."
        case _:
            return f"{run.state.words.capitalize()}: {causes[0].title}."


def _facts(code: int | None, seconds: float | None, versions: "dict[str, str] | object") -> list[tuple[str, str]]:
    known = {exit_code.value: text for exit_code, text in _EXIT_CODES.items()}
    said = "in no file" if code is None else f"{code}: {known.get(code, 'of somebody else')}"
    facts = [("exit code", said)]
    facts += [("took", f"{seconds:,.1f} s")] if seconds else []
    return facts + ([(name, str(value)) for name, value in versions.items()] if isinstance(versions, dict) else [])


def _plots(page: Page) -> list[tuple[str, str, Markup]]:
    """Bars across cells: what saves and kills cost."""
    costs = [(cell, costs_of(cell.run)) for cell in page.cells if cell.run is not None]
    found = [
        _plot(page, "Training waited for saves", [(cell, blocked_of(cell)) for cell in page.cells], milliseconds),
        _plot(
            page,
            "Bytes per second, from request to commit",
            [(cell, one.bytes_per_second) for cell, one in costs],
            lambda value: f"{bytes_text(int(value))}/s",
        ),
        _plot(
            page,
            "Time lost: steps that were done and done again, on rank 0",
            [(cell, one.lost_seconds if one.lost_steps else None) for cell, one in costs],
            milliseconds,
        ),
    ]
    return [plot for plot in found if plot is not None]


def _plot(
    page: Page, title: str, values: Sequence[tuple[CellFacts, float | None]], text: Callable[[float], str]
) -> tuple[str, str, Markup] | None:
    known = [(cell, value) for cell, value in values if value]
    if not known:
        return None
    median = text(statistics.median(value for _, value in known))
    largest = sorted(known, key=lambda one: -one[1])[:_MOST_BARS]
    shown = known if len(known) <= _MOST_BARS else largest
    note = f"{counted(len(known), 'cell')} with a figure; median {median}."
    note += f" Drawn are the {_MOST_BARS} largest." if len(known) > _MOST_BARS else ""
    return (
        title,
        note,
        bars_svg([Bar(page.label(cell), cell.anchor, value, text(value)) for cell, value in shown], title),
    )


def _told(key: str, value: str) -> str:
    """An override in short: a value that says by itself what it is needs no key."""
    is_telling = value.replace("_", "").isalpha() and value.lower() not in _VAGUE
    return value if is_telling else f"{key.rpartition('.')[2]}={value}"


def _with(page: Page, **changes: object) -> Page:
    return Page(**{**{name: getattr(page, name) for name in page.__dataclass_fields__}, **changes})


def _size(text: str) -> int:
    """In bytes; a name may hold what is no character."""
    return len(text.encode(errors="replace"))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _text_of(name: str) -> str:
    return files("ckptrun.report").joinpath("page", name).read_text(encoding="utf-8")


@functools.cache
def _environment() -> Environment:
    found = Environment(
        loader=PackageLoader("ckptrun.report", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters["cut"] = cut_text
    found.filters["ms"] = milliseconds
    found.filters["bytes"] = lambda value: "not measured" if value is None else bytes_text(int(value))
    return found
