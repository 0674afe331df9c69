"""Which step a start went on from, found by what it has loaded. Torch-free.

The state before its first update is that of an earlier start, or of the reference, after some step. Steps with the
same parameters are told apart by their moments, then by what the job or its trainer counts, then by the newest save
that was complete. Where no step has this state, the counter counts, then that save. Where a counter and the state
disagree, the state says what was computed, and the counter is told.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptrun.foreign.records import Heard, HeardRank, HeardStep

__all__ = ["Aligned", "Source", "align", "state_at", "state_before", "used_batches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Aligned:
    """Where a start stands among the steps of the reference."""

    step: int
    """What it went on from; 0: it began anew."""
    how: str
    """By what that is known: ``state``, ``counter``, ``save`` or ``beginning``."""
    contradiction: str = ""
    """A counter that says otherwise, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A start that has left what another one may have loaded."""

    heard: Heard
    first_step: int
    """What it went on from."""


def align(start: Heard, sources: Sequence["Source"], *, newest: int) -> Aligned:
    """Find the step that ``start`` went on from.

    Args:
        start: A later start of a run.
        sources: What it may have loaded: earlier starts, the last one first, and the reference.
        newest: The step of the newest complete checkpoint before this start; 0: there is none.
    """
    counters = [counter for rank in start.ranks for counter in rank.counters]
    counted = counters[-1] if counters else None
    by_state = next((found for found in (_by_state(start, source) for source in sources) if found), {})
    if by_state:
        step = _likeliest(by_state, counted=counted[1] if counted else None, newest=newest)
        contradiction = ""
        if counted is not None and counted[1] != step:
            contradiction = f"{counted[0]} says step {counted[1]}, and the state is that after step {step}"
        return Aligned(step=step, how="state", contradiction=contradiction)
    if counted is not None:
        return Aligned(step=max(0, counted[1]), how="counter")
    return Aligned(step=newest, how="save") if newest else Aligned(step=0, how="beginning")


def _likeliest(found: Mapping[int, int], *, counted: int | None, newest: int) -> int:
    """Of several steps with the same parameters the one with most equal moments; else who is counted, or newest."""
    most = max(found.values())
    best = [step for step, equal in found.items() if equal == most]
    for wished in (counted, newest):
        if wished is not None and wished in best:
            return wished
    return max((step for step in best if step <= newest), default=best[0])


def _by_state(start: Heard, source: "Source") -> dict[int, int]:
    """Steps of ``source`` after which every rank had the parameters that ``start`` began with -> equal moments."""
    total: dict[int, int] | None = None
    others = {rank.rank: rank for rank in source.heard.ranks}
    for rank in start.ranks:
        if rank.steps:
            found = _of_rank(rank.steps[0], others.get(rank.rank), source.first_step)
            total = (
                found if total is None else {step: total[step] + found[step] for step in total.keys() & found.keys()}
            )
    return total or {}


def _of_rank(first: HeardStep, source: HeardRank | None, first_step: int) -> dict[int, int]:
    mine = _parameters(first.before)
    if not mine or source is None:
        return {}
    held = first.moments_before or {}
    found = {}
    for index, step in enumerate(source.steps):
        if _parameters(step.before) == mine:
            found[first_step + index] = _equal(held, _moments_at(source, index))
    last = source.steps[-1] if source.steps else None
    if last is not None and last.after and all(mine.get(name) == digest for name, digest in last.after.items()):
        found.setdefault(first_step + len(source.steps), _equal(held, last.moments))
    return found


def _moments_at(rank: HeardRank, index: int) -> Mapping[str, str]:
    return rank.steps[index - 1].moments if index else rank.steps[0].moments_before or {}


def state_at(rank: HeardRank, index: int) -> dict[str, str] | None:
    """Parameters and moments that a rank had after ``index`` of its own steps; None where it has taken fewer."""
    if index < len(rank.steps):
        return _parameters(rank.steps[index].before) | dict(_moments_at(rank, index))
    if index and index == len(rank.steps):
        return rank.steps[-1].after | rank.steps[-1].moments
    return None


def state_before(rank: HeardRank) -> dict[str, str]:
    """Those that it had before its first step."""
    first = rank.steps[0]
    return _parameters(first.before) | (first.moments_before or {})


def _parameters(digests: Mapping[str, str]) -> dict[str, str]:
    return {name: digest for name, digest in digests.items() if name.startswith("model.")}


def _equal(one: Mapping[str, str], other: Mapping[str, str]) -> int:
    if not one and not other:
        return 1
    return sum(other.get(name) == digest for name, digest in one.items())


def used_batches(step: HeardStep, reference: Sequence[HeardStep]) -> int:
    """How many of the last batches before the first update of a start its step can have used.

    One for each backward pass, and those that a loader is ahead: as many as it was at the first step of the reference.
    """
    first = reference[0] if reference else step
    ahead = max(0, len(first.batches) - max(1, len(first.losses)))
    return max(1, len(step.losses)) + ahead
