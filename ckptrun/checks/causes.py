"""Which of several differences was there first: what follows from a cause differs too, and is not to be blamed.

The moments of a run, in the order in which one decides the next: within a start, the load; what ranks agree on after
it; then step by step the step itself, what ranks agree on when its save is requested, the files of that save, these
files beside those of the save before; and the state at the end. Torch-free.
"""

from collections.abc import Sequence

from ckptrun.engine.layout import parse_step
from ckptrun.engine.locate import locate
from ckptrun.evidence.starts import Start
from ckptrun.evidence.verdict import Check

__all__ = ["Moment", "moment_of"]

Moment = tuple[int, int, int]
"""Start, step, and place within the step."""

_AFTER_LOAD, _AT_REQUEST, _LAST = 1, 3, 9
_PLACES = {
    "loaded_equals_saved": 0,
    "nothing_lost": 0,
    "damage_noticed": 0,
    "trajectory": 2,
    "saving_is_invisible": 2,
    "data_order": 2,
    "saved_equals_live": 4,
    "saves_differ": 5,
    "final_state": 6,
}
_OF_SAVES = ("saved_equals_live", "saves_differ")
_AT_THE_END = 2**62


def moment_of(check: Check, starts: Sequence[Start]) -> Moment:
    """Return when what ``check`` has found came to be; the end of the run where that is not known."""
    last = starts[-1].index if starts else 0
    step = None if check.first_difference is None else check.first_difference.step
    start = check.start
    if start is None and check.name in _OF_SAVES and isinstance(step, int):
        # Whoever has committed it last.
        start = max((other.index for other in starts if step in map(_step_of, other.committed)), default=last)
    if not isinstance(step, int):
        step = starts[start].step if start is not None and start < len(starts) else _AT_THE_END
    start = last if start is None else start
    if check.name == "resume":
        # How far it came is not known; what else differed in that start was there before it ended.
        return start, _AT_THE_END, _LAST
    if check.name == "replicas":
        # A save is of a later step than the one that its start went on from.
        is_of_load = start < len(starts) and step == starts[start].step
        return start, step, _AFTER_LOAD if is_of_load else _AT_REQUEST
    return start, step, _PLACES.get(check.name, _LAST)


def _step_of(folder: str) -> int | None:
    return parse_step(locate(folder).name)
