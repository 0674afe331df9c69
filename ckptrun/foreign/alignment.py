"""Which step a start went on from, found by what it has loaded. Torch-free.

The state before its first update is that of an earlier start, or of the reference, after some step. Steps with the
same parameters are told apart by their moments, then by what the job or its trainer counts, then by the newest save
that was complete. Where no step has this state, the counter counts, then that save. Where a counter and the state
disagree, the state says what was computed, and the counter is told.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ckptrun.foreign.records import Heard, HeardRank, HeardStep

__all__ = [
    "Aligned",
    "Source",
    "align",
    "copies_before",
    "digests_at",
    "is_known",
    "is_of_copy",
    "moments_at",
    "state_at",
    "state_before",
    "used_batches",
]


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
    if newest and newest not in by_state and _has_moments(start, sources, newest):
        # The parameters are of another step, or of none: that the newest checkpoint was loaded is known by the rest.
        return Aligned(step=newest, how="state")
    if by_state:
        step = _likeliest(by_state, counted=counted[1] if counted else None, newest=newest)
        contradiction = ""
        if counted is not None and counted[1] != step:
            contradiction = f"{counted[0]} says step {counted[1]}, and the state is that after step {step}"
        return Aligned(step=step, how="state", contradiction=contradiction)
    if counted is not None:
        return Aligned(step=max(0, counted[1]), how="counter")
    return Aligned(step=newest, how="save") if newest else Aligned(step=0, how="beginning")


def _has_moments(start: Heard, sources: Sequence["Source"], step: int) -> bool:
    """Whether every rank began with all moments that it had after ``step``, and only then."""
    return any(
        all(_has_moments_of(rank, source, step) for rank in start.ranks if rank.steps)
        for source in sources
        if start.steps
    )


def _has_moments_of(rank: HeardRank, source: "Source", step: int) -> bool:
    there = next((one for one in source.heard.ranks if one.rank == rank.rank), None)
    index = step - source.first_step
    if there is None or not 0 < index <= len(there.steps):
        return False
    held = moments_before(rank)
    known, before = moments_at(there, index), moments_at(there, index - 1)
    return bool(held) and held == known and held != before


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
            found = _of_rank(rank, others.get(rank.rank), source.first_step)
            total = (
                found if total is None else {step: total[step] + found[step] for step in total.keys() & found.keys()}
            )
    return total or {}


def _of_rank(rank: HeardRank, source: HeardRank | None, first_step: int) -> dict[int, int]:
    skipped, mine = _first_parameters(rank)
    if not mine or source is None:
        return {}
    held = moments_before(rank)
    found = {}
    for index in range(len(source.steps) + 1):
        theirs = parameters_at(source, index)
        if theirs and theirs.keys() & mine.keys() and all(mine.get(n, d) == d for n, d in theirs.items()):
            # Steps that a loss scaler left out before the first update have changed nothing.
            found[max(0, first_step + index - skipped)] = _equal(held, moments_at(source, index))
    return found


def _first_parameters(rank: HeardRank) -> tuple[int, dict[str, str]]:
    """How many steps a rank began with that changed nothing, and its parameters before the first that did."""
    for index, step in enumerate(rank.steps):
        if step.before:
            return index, _parameters(step.before)
    return 0, {}


def parameters_at(rank: HeardRank, index: int) -> dict[str, str]:
    """Parameters that a rank had after ``index`` of its own steps; empty where they were not looked at."""
    # A step that a loss scaler leaves out is not looked at, and changes nothing.
    while index < len(rank.steps) and rank.steps[index].skipped:
        index += 1
    if index < len(rank.steps):
        return _parameters(rank.steps[index].before)
    return dict(rank.steps[-1].after) if rank.steps and index == len(rank.steps) else {}


def moments_at(rank: HeardRank, index: int) -> dict[str, str]:
    """Moments that it had then: each as it was left by the last update that changed it, where all were looked at.

    What an optimizer that the next step replaces had is gone.
    """
    found = _moments_after(rank, index)
    if index < len(rank.steps):
        stepped = {place for step in rank.steps[:index] for place in step.updates}
        found = _replaced(found, rank.steps[index], stepped)
    return found


def _moments_after(rank: HeardRank, index: int) -> dict[str, str]:
    """Moments as ``index`` of its own steps have left them."""
    if any(not step.after and not step.skipped for step in rank.steps[:index]):
        return dict(rank.steps[index - 1].moments)
    found = moments_before(rank)
    stepped: set[int] = set()
    for step in rank.steps[:index]:
        found = _replaced(found, step, stepped) | step.moments
        stepped.update(step.updates)
    return found


def _replaced(moments: dict[str, str], step: HeardStep, stepped: Collection[int]) -> dict[str, str]:
    """What is left of ``moments`` where a step begins with an optimizer that was made anew, and what that one had."""
    gone = set(step.begun) & set(stepped)
    if not gone:
        return moments
    kept = {leaf: digest for leaf, digest in moments.items() if _optimizer_of(leaf) not in gone}
    return kept | {leaf: d for leaf, d in (step.moments_before or {}).items() if _optimizer_of(leaf) in gone}


def moments_before(rank: HeardRank) -> dict[str, str]:
    """Moments that a rank began with: of each optimizer, those before its own first update."""
    found: dict[str, str] = {}
    stepped: set[int] = set()
    for step in rank.steps:
        found |= {leaf: d for leaf, d in (step.moments_before or {}).items() if _optimizer_of(leaf) not in stepped}
        stepped.update(step.updates)
    return found


def digests_at(rank: HeardRank, index: int) -> frozenset[str]:
    """All that can be in a checkpoint of what it had after ``index`` of its own steps: as left, and as found next."""
    left = rank.steps[index - 1].after if 0 < index <= len(rank.steps) else {}
    state = state_at(rank, index)
    moments = _moments_after(rank, index) if state else {}
    return frozenset([*left.values(), *moments.values(), *(state or {}).values()])


def state_at(rank: HeardRank, index: int) -> dict[str, str] | None:
    """Parameters and moments that a rank had after ``index`` of its own steps; None where they were not looked at."""
    parameters = parameters_at(rank, index)
    return parameters | moments_at(rank, index) if parameters else None


def state_before(rank: HeardRank) -> dict[str, str]:
    """Those that it had before its first step."""
    _, parameters = _first_parameters(rank)
    return parameters | moments_before(rank)


def is_known(leaf: str, rank: HeardRank, began_with: Mapping[str, str]) -> bool:
    """Whether ``rank`` can have said what it began with of a leaf: of an optimizer only once that was stepped."""
    if not leaf.startswith("optimizer."):
        # A model is there by its class: one that has not been met yet belongs to an optimizer that was not stepped.
        return leaf in began_with
    index = _optimizer_of(leaf)
    return any(index in step.updates for step in rank.steps if step.moments_before is not None)


def _optimizer_of(leaf: str) -> int:
    """The place of the optimizer that has a moment."""
    second = leaf.split(".")[1]
    return int(second[1:]) if second.startswith("#") else 0


def _parameters(digests: Mapping[str, str]) -> dict[str, str]:
    """Of what is trained; copies of it (averages, teachers) may be there or not."""
    return {n: d for n, d in digests.items() if n.startswith("model.") and not is_of_copy(n)}


def is_of_copy(leaf: str) -> bool:
    """Whether a leaf is of a module that nobody trains."""
    return leaf.partition(".")[2].startswith("copy of ")


def copies_before(step: HeardStep) -> dict[str, str]:
    """Parameters of modules that nobody trains, before a step."""
    return {name: digest for name, digest in step.before.items() if name.startswith("model.") and is_of_copy(name)}


def _equal(one: Mapping[str, str], other: Mapping[str, str]) -> int:
    if not one and not other:
        return 1
    return sum(other.get(name) == digest for name, digest in one.items())


def used_batches(step: HeardStep, reference: Sequence[HeardStep]) -> int:
    """How many of the last batches before the first update of a start its step can have used.

    One for each backward pass, and one more if the loader is ahead, as it was at the first step of the reference; or as
    many as every step of the reference has of that dataset: two loaders of it may go side by side.
    """
    first = reference[0] if reference else step
    # With several loaders it is not known whose batches they are.
    is_ahead = len(first.iterators) == 1 and len(first.batches) == max(1, len(first.losses)) + 1
    label = step.batches[-1].label if step.batches else ""
    least = min((sum(batch.label == label for batch in line.batches) for line in reference), default=0)
    return max(max(1, len(step.losses)) + is_ahead, least)
