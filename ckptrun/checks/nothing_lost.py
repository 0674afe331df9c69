"""The check ``nothing_lost``: each start went on from the newest checkpoint that there was, and the last step is saved.

A run that begins anew repeats its reference bit for bit, so no comparison of what was computed shows that work was
lost. What the starts say of themselves does: what they have committed, and what the next one went on from.

Torch-free.
"""

from collections.abc import Container, Iterator, Sequence
from typing import Any

from ckptrun.engine.layout import parse_step
from ckptrun.engine.locate import locate
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.starts import Start
from ckptrun.evidence.verdict import Check, Status

__all__ = ["check_nothing_lost"]

_NAME = "nothing_lost"


def check_nothing_lost(starts: Sequence[Start], *, damaged: Container[str], last_step: int) -> Check:
    """Look at what each start went on from.

    Args:
        starts: All of a run, in order.
        damaged: Checkpoints that a fault has damaged on purpose, as
            :func:`~ckptrun.engine.locate.locate` spells them; a start passes them over.
        last_step: Of the run.
    """
    # One that was killed before it had loaded says nothing.
    begun = [start for start in starts if start.world_size]
    for start in begun:
        for detail, first in _wrong_with(start, starts, damaged):
            return Check(name=_NAME, status=Status.different, detail=detail, first_difference=first, start=start.index)
    committed = {_step(folder) for start in starts for folder in start.committed}
    if begun and begun[-1].is_complete and last_step not in committed:
        detail = f"the run says that it is complete, and no checkpoint of its last step, {last_step}, was committed"
        return Check(name=_NAME, status=Status.different, detail=detail, first_difference=_of_step(last_step, "none"))
    resumed = [start for start in begun if start.resumed_from is not None]
    steps = ", ".join(str(start.step) for start in resumed)
    detail = f"each of {len(resumed)} resumes went on from the newest checkpoint that there was (steps {steps})"
    if not resumed:
        detail = "no start has found a checkpoint, and there was none"
    status = Status.equal if resumed else Status.not_verified
    return Check(name=_NAME, status=status, detail=detail, covered={"resumes": len(resumed)}, is_needed=bool(resumed))


def _wrong_with(
    start: Start, starts: Sequence[Start], damaged: Container[str]
) -> Iterator[tuple[str, Difference | None]]:
    name = f"start {start.index + 1}"
    for folder, reason in start.damaged.items():
        if str(locate(folder)) not in damaged:
            yield f"{name} found {folder} damaged, and no fault was to damage it: {reason}", None
    before = [folder for other in starts if other.index < start.index for folder in other.committed]
    there = [folder for folder in before if folder not in start.damaged]
    newest = max(there, key=_step, default=None)
    own = None if start.resumed_from is None else _step(start.resumed_from)
    if newest is not None and (own is None or own < _step(newest)):
        what = "began anew" if own is None else f"went on from step {own}"
        yield f"{name} {what}, though {newest} had been committed", _of_step(_step(newest), own or 0)
    if own is not None and own >= 0 and own != start.step:
        detail = f"{name} has loaded {start.resumed_from}, and counts {start.step} steps"
        yield detail, _of_step(own, start.step)


def _step(folder: str) -> int:
    step = parse_step(locate(folder).name)
    return -1 if step is None else step


def _of_step(expected: int, got: Any) -> Difference:
    return Difference.of_leaf("progress.step", step=expected, rank=None, expected=expected, got=got)
