"""Inline SVG of a report: losses, what each rank did step by step, and bars across cells.

Drawn by hand: a plotting library writes ten to a hundred times the bytes, or needs a script of its own on the page.
Colours are classes of ``page/style.css``, so that they follow light and dark. Torch-free.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ckptrun.report.history import History, Lane, Losses
from ckptrun.text import cut_text

__all__ = ["Bar", "bars_svg", "losses_svg", "timeline_svg"]

_WIDTH = 640
_LEFT, _RIGHT = 58, 10
_MOST_POINTS = 160
_MOST_RANKS = 8
_ROW, _GAP = 8, 2


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar across cells."""

    label: str
    anchor: str
    value: float
    text: str


def losses_svg(history: History) -> Markup:
    """Draw the losses of the reference and of every start, with kills and resumes marked; empty without losses."""
    lines = [line for line in history.losses if line.points]
    if not lines:
        return Markup()
    values = [loss for line in lines for _, loss in line.points]
    low, high = min(values), max(values)
    span = (high - low) or abs(high) or 1.0
    top, bottom, height = 16, 150, 176
    x = _scale(history.steps)

    def y(loss: float) -> float:
        return bottom - (loss - low) / span * (bottom - top)

    parts = [_axis(x, history.steps, bottom, height)]
    for loss in dict.fromkeys((low, (low + high) / 2, high)):
        parts.append(f'<text class="t" x="{_LEFT - 5}" y="{y(loss) + 4:.0f}" text-anchor="end">{loss:.4g}</text>')
    for line in lines:
        name = "ref" if line.start is None else f"run s{line.start % 4}"
        points = " ".join(f"{x(step):.1f},{y(loss):.1f}" for step, loss in _thinned(line))
        parts.append(f'<polyline class="{name}" points="{points}"><title>{escape(line.label)}</title></polyline>')
        if line.start is not None and len(line.points) == 1:
            step, loss = line.points[0]
            parts.append(f'<circle class="dot" cx="{x(step):.1f}" cy="{y(loss):.1f}" r="2"/>')
    for strike in history.strikes:
        at = x(strike.step)
        parts.append(f'<path class="kill" d="M{at:.1f} {top}V{bottom}"><title>{escape(strike.text)}</title></path>')
        parts.append(f'<text class="k" x="{at:.1f}" y="{top - 4}" text-anchor="middle">✗</text>')
    for start, step in history.resumes:
        if start:
            text = f"start {start + 1} goes on from step {step}"
            parts.append(_resume(x(step), bottom, text))
    return _svg(height, parts, "Loss at each step, of the reference and of each start")


def timeline_svg(history: History) -> Markup:
    """Draw a strip per rank with a row per start: steps, steps done again, kills; above them the saves."""
    if not history.lanes:
        return Markup()
    x = _scale(history.steps)
    starts = sorted({lane.start for lane in history.lanes})
    parts: list[str] = []
    top = 4
    if history.saves:
        top = _save_rows(parts, history, starts, x, top)
    for rank in shown_ranks(history):
        parts.append(f'<text class="t" x="{_LEFT - 5}" y="{top + 9}" text-anchor="end">rank {rank}</text>')
        mine = {lane.start: lane for lane in history.lanes if lane.rank == rank}
        for row, start in enumerate(starts):
            if start in mine:
                at = top + row * (_ROW + _GAP)
                parts += _bars(mine[start], [mine[s].last for s in starts if s < start and s in mine], x, at)
                parts += [
                    _titled(f'<path class="cross" d="M{x(s.step) - 4:.1f} {at}l8 8m0 -8l-8 8">', s.text, "path")
                    for s in history.strikes
                    if s.rank == rank and s.start == start
                ]
        top += len(starts) * (_ROW + _GAP) + 6
    parts.append(_axis(x, history.steps, top, top + 22))
    return _svg(top + 24, parts, "What each rank did, a row per start")


def shown_ranks(history: History) -> list[int]:
    """Which ranks have a strip: those that a fault struck, and the first."""
    struck = [rank for rank in history.ranks if any(strike.rank == rank for strike in history.strikes)]
    others = [rank for rank in history.ranks if rank not in struck]
    return sorted([*struck, *others][:_MOST_RANKS])


def bars_svg(bars: Sequence[Bar], title: str) -> Markup:
    """Draw a bar per cell, each a link to its place on the page."""
    highest = max((bar.value for bar in bars), default=0.0) or 1.0
    left, right = 268, 76
    parts = []
    for row, bar in enumerate(bars):
        at = 4 + row * 17
        wide = max(1.0, bar.value / highest * (_WIDTH - left - right))
        label = bar.label if len(bar.label) <= 42 else f"…{bar.label[-41:]}"
        parts.append(
            f'<a href="#{escape(bar.anchor)}">'
            f'<text class="t" x="{left - 6}" y="{at + 10}" text-anchor="end">{escape(label)}</text>'
            f'<rect class="bar" x="{left}" y="{at}" width="{wide:.1f}" height="12"/>'
            f'<text class="t" x="{left + wide + 5:.1f}" y="{at + 10}">{escape(cut_text(bar.text, 14))}</text></a>'
        )
    return _svg(len(bars) * 17 + 8, parts, title)


def _save_rows(parts: list[str], history: History, starts: Sequence[int], x: Callable[[float], float], top: int) -> int:
    parts.append(f'<text class="t" x="{_LEFT - 5}" y="{top + 9}" text-anchor="end">saves</text>')
    for save in history.saves:
        at = top + (starts.index(save.start) if save.start in starts else 0) * (_ROW + _GAP) + _ROW / 2
        begin, end = x(save.step), x(save.noted_after)
        until = f", commit seen after step {save.noted_after}" if save.noted_after > save.step else ", then committed"
        title = f"{save.folder}: requested after step {save.step}{until}"
        line = f"M{begin:.1f} {at}H{end:.1f}M{end:.1f} {at - 4}l4 4l-4 4l-4 -4z"
        parts.append(_titled(f'<path class="save" d="{line}">', title, "path"))
    return top + len(starts) * (_ROW + _GAP) + 6


def _bars(lane: Lane, earlier: Sequence[int], x: Callable[[float], float], at: int) -> list[str]:
    """The steps of a start; those that an earlier one had taken are hatched."""
    until = min(max(earlier, default=0), lane.last)
    found = []
    if until >= lane.first:
        text = f"start {lane.start + 1}: steps {lane.first} to {until} done again"
        found.append(_rect("redo", x(lane.first - 1), x(until), at, text))
    if lane.last > max(until, lane.first - 1):
        first = max(until + 1, lane.first)
        found.append(
            _rect("step", x(first - 1), x(lane.last), at, f"start {lane.start + 1}: steps {first} to {lane.last}")
        )
    return found


def _rect(kind: str, begin: float, end: float, at: int, title: str) -> str:
    box = f'x="{begin:.1f}" y="{at}" width="{max(end - begin, 1):.1f}" height="{_ROW}"'
    return f'<rect class="{kind}" {box}><title>{escape(title)}</title></rect>'


def _titled(opening: str, title: str, name: str) -> str:
    return f"{opening}<title>{escape(title)}</title></{name}>"


def _resume(at: float, bottom: int, text: str) -> str:
    return (
        f'<path class="resume" d="M{at:.1f} {bottom + 2}l4 8h-8z"><title>{escape(text)}</title></path>'
        f'<path class="since" d="M{at:.1f} {bottom}v-8"/>'
    )


def _thinned(line: Losses) -> Sequence[tuple[int, float]]:
    points = line.points
    stride = -(-len(points) // _MOST_POINTS)
    return points if stride == 1 else [*points[:-1:stride], points[-1]]


def _scale(steps: int) -> Callable[[float], float]:
    return lambda step: _LEFT + step / max(steps, 1) * (_WIDTH - _LEFT - _RIGHT)


def _axis(x: Callable[[float], float], steps: int, bottom: int, height: int) -> str:
    stride = next((s for s in _STRIDES if steps / s <= 8), -(-steps // 8)) or 1
    ticks = list(range(0, steps + 1, stride))
    texts = [
        f'<text class="t" x="{x(step):.1f}" y="{height - 4}" text-anchor="middle">{step}</text>'
        f'<path class="tick" d="M{x(step):.1f} {bottom}v3"/>'
        for step in ticks
    ]
    return f'<path class="axis" d="M{_LEFT} {bottom}H{_WIDTH - _RIGHT}"/>{"".join(texts)}'


_STRIDES = [base * 10**power for power in range(8) for base in (1, 2, 5)]


def _svg(height: float, parts: Sequence[str], label: str) -> Markup:
    # Every text among the parts has been escaped where it was put in.
    head = f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(label)}">'
    return Markup(f"{head}{''.join(parts)}</svg>")
