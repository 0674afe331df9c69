"""Writes what a start of a job did as a run of ours would have: its ledger, its events, what it has loaded. Torch-free.

A line of the ledger has the same fields, and as ``leaves`` the digest of everything that the probe saw: learning rates
of all groups, options, buffers, gradients, parameters, moments. Random streams stand apart (``streams``): where they
stand is no result of a step, and counts only where something else comes out otherwise.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptrun.evidence.difference import Difference
from ckptrun.evidence.run_folder import EVENTS, ledger_file
from ckptrun.evidence.verdict import Check, Status
from ckptrun.files import append_line
from ckptrun.foreign.alignment import (
    Aligned,
    Source,
    copies_before,
    is_known,
    is_of_copy,
    state_at,
    state_before,
    used_batches,
)
from ckptrun.foreign.checkpoints import SavedStep
from ckptrun.foreign.records import Heard, HeardRank, HeardStep
from ckptrun.foreign.written import Written, not_repeated, written_by
from ckptrun.text import counted

__all__ = ["NO_BATCHES", "ToldStart", "check_loaded", "write_events", "write_ledgers"]

_RATE = "schedule.learning_rate.0"


def write_ledgers(
    folder: Path, heard: Heard, *, start: int, first_step: int, reference: Heard | None, first: Heard | None = None
) -> None:
    """Append what every rank did to its ledger.

    Args:
        folder: The run folder.
        heard: What the ranks did.
        start: How often the run had been started before.
        first_step: The step that they went on from.
        reference: The run that nothing happened to; None: this is it.
        first: The first start of this run, which had loaded nothing: what it wrote as the reference did repeats itself,
            and is compared. None: nothing of that is.
    """
    others = {rank.rank: rank for rank in reference.ranks} if reference is not None else {}
    before = {rank.rank: rank for rank in first.ranks} if first is not None else {}
    for rank in heard.ranks:
        there = others.get(rank.rank)
        file = ledger_file(folder, rank.rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        written = _written(rank, first_step, there, before.get(rank.rank))
        for step in _whole_steps(rank, first_step, there):
            line = _line(step, first_step, there)
            line["leaves"] |= written.get(line["step"], {})
            append_line(file, line | {"start": start})


def _written(rank: HeardRank, first_step: int, reference: HeardRank | None, first: HeardRank | None) -> Written:
    """What it wrote, compared where both have, and where it repeats itself."""
    mine = written_by(rank, first_step=first_step)
    if reference is None:
        return mine
    theirs = written_by(reference, first_step=0)
    # What the first start wrote counts as equal: a run that does not repeat itself shows in its steps.
    mine = mine if first is not None else {}
    apart = not_repeated(theirs, written_by(first, first_step=0)) if first is not None else set()
    return {
        step: {leaf: d if leaf in apart else mine.get(step, {}).get(leaf, d) for leaf, d in leaves.items()}
        for step, leaves in theirs.items()
    }


def _whole_steps(rank: HeardRank, first_step: int, reference: HeardRank | None) -> list[HeardStep]:
    """The steps of a rank, without a last one that it was killed in: not all of its optimizers have been stepped."""
    if rank.has_ended or reference is None or not rank.steps:
        return rank.steps
    last = rank.steps[-1]
    number = first_step + last.number
    wanted = reference.steps[number - 1].updates if number <= len(reference.steps) else last.updates
    is_cut = len(last.updates) < len(wanted) and wanted[: len(last.updates)] == last.updates
    return rank.steps[:-1] if is_cut else rank.steps


def _line(step: HeardStep, first_step: int, reference: HeardRank | None) -> dict[str, Any]:
    number = first_step + step.number
    there = reference.steps[number - 1] if reference is not None and number <= len(reference.steps) else None
    is_first = step.number == 1 and first_step > 0
    digests = [batch.digest for batch in step.batches]
    batch = _first_batches(step, reference, number) if reference and there and is_first else _batches(digests)
    further = {f"loss.{index}": loss for index, loss in enumerate(step.losses) if index}
    rates = {name: value for name, value in step.plain.items() if name.startswith("schedule.") and name != _RATE}
    others = {name: value for name, value in step.plain.items() if not name.startswith("schedule.")}
    looked_at: dict[str, str] = {}
    if there is None or there.after or there.skipped:
        buffers = {n: d for n, d in step.before.items() if n.startswith("buffers.") and not is_of_copy(n)}
        looked_at = buffers | step.gradients | step.after | step.moments | _copies(step, there)
    return {
        "step": number,
        "loss": next((loss for loss in step.losses if not loss.startswith("digest")), None),
        "gradient_norm": None,
        "learning_rate": step.plain.get(_RATE),
        "skipped": step.skipped,
        "batch": batch,
        "rng": {},
        "streams": step.streams,
        "iterators": step.iterators,
        "drawn": sorted({name for one in step.batches for name in one.drawn}),
        "leaves": rates | others | further | looked_at,
    }


def _copies(step: HeardStep, there: HeardStep | None) -> dict[str, str]:
    """Copies of what is trained: compared where both runs have them, as they are made now and then, or later."""
    mine = copies_before(step)
    if there is None:
        return mine
    return {name: mine.get(name, digest) for name, digest in copies_before(there).items()}


def _batches(digests: Iterable[str]) -> str:
    return hashlib.blake2b(" ".join(digests).encode(), digest_size=8).hexdigest()


NO_BATCHES = _batches(())
"""What the ledger says of a step that no loader hands a batch out for."""


def _first_batches(step: HeardStep, reference: HeardRank, number: int) -> str:
    """What the ledger says of the batches before the first update of a later start.

    A loader begins anew there: batches that were used before are skipped, those that it was ahead come once more. What
    the step can have used is compared with what the loader of the same dataset had handed out last in the reference;
    where that is the same the line says what the line of the reference says.
    """
    if not step.batches:
        return _batches([])
    label = step.batches[-1].label
    window = used_batches(step, reference.steps)
    mine = [batch.digest for batch in step.batches if batch.label == label][-window:]
    theirs = [batch.digest for line in reference.steps[:number] for batch in line.batches if batch.label == label]
    is_same = mine == theirs[len(theirs) - len(mine) :]
    return _batches(batch.digest for batch in reference.steps[number - 1].batches) if is_same else _batches(mine)


@dataclass(frozen=True, slots=True, kw_only=True)
class ToldStart:
    """What a start says of itself."""

    start: int
    """How often the run had been started before."""
    ranks: int
    aligned: Aligned
    resumed_from: str | None
    saved: Sequence[SavedStep]
    checks: Sequence[Check]
    ended: str | None
    failure: Mapping[str, Any] | None


def write_events(folder: Path, told: ToldStart) -> None:
    """Append what a start says of itself to ``events.jsonl``."""
    began = {"step": told.aligned.step, "resumed_from": told.resumed_from, "known_by": told.aligned.how}
    events: list[dict[str, Any]] = [
        {"event": "launch", "start": told.start},
        {"event": "start", "world_size": told.ranks, **began},
    ]
    events += [{"event": "check", **check.as_json()} for check in told.checks]
    events += [{"event": "commit", "folder": one.name, "step": one.step} for one in told.saved if one.is_complete]
    events += [{"event": "failure", **told.failure}] if told.failure is not None else []
    events += [{"event": told.ended}] if told.ended is not None else []
    for event in events:
        append_line(folder / EVENTS, event)


def check_loaded(heard: Heard, sources: Sequence[Source], aligned: Aligned) -> Check | None:
    """``loaded_equals_saved``: a start had before its first update what was there after the step that it goes on from.

    Parameters and moments; the rest shows in what the next step does. None: the start has taken no step, or nobody is
    known to have taken that one.

    Args:
        heard: What the ranks of the start did.
        sources: Who may have saved what it loaded: earlier starts, the last one first, and the reference.
        aligned: What it went on from.
    """
    leaves = ranks = 0
    for rank in heard.ranks:
        saved = _saved_states(sources, rank.rank, aligned.step) if rank.steps else []
        if not saved:
            continue
        got = state_before(rank)
        known = [{leaf: digest for leaf, digest in state.items() if is_known(leaf, rank, got)} for state in saved]
        expected = min(known, key=lambda state: len(_wrong(state, got)))
        ranks, leaves = ranks + 1, max(leaves, len(expected))
        wrong = _wrong(expected, got)
        if wrong:
            fresh = _fresh_state(sources, rank.rank)
            return _not_loaded(wrong, expected, got, fresh, rank=rank.rank, step=aligned.step)
    if not ranks:
        return None
    return Check(
        name="loaded_equals_saved",
        status=Status.equal,
        detail=f"{leaves} leaves on {counted(ranks, 'rank')} had the bits that they had after that step",
        covered={"leaves": leaves, "ranks": ranks},
    )


def _wrong(expected: Mapping[str, str], got: Mapping[str, str]) -> list[str]:
    return [name for name in expected if got.get(name) != expected[name]]


def _saved_states(sources: Sequence[Source], number: int, step: int) -> list[dict[str, str]]:
    """What a rank had after ``step``, as the last start that took it says.

    Where that start was killed before the next step, it says what the update left; code after it may have changed that
    before it was saved (a clamp, a projection). What the reference had before its next step counts as well then.
    """
    found = []
    for source in sources:
        rank = next((one for one in source.heard.ranks if one.rank == number), None)
        index = step - source.first_step
        state = state_at(rank, index) if rank is not None and index > 0 else None
        if rank is None or state is None:
            continue
        found.append(state)
        if index < len(rank.steps):
            break
    return found


def _fresh_state(sources: Sequence[Source], number: int) -> dict[str, str]:
    """What a rank began with when it had loaded nothing."""
    ranks = [rank for source in sources if not source.first_step for rank in source.heard.ranks]
    return next((state_before(rank) for rank in ranks if rank.rank == number), {})


def _not_loaded(
    wrong: Sequence[str],
    expected: Mapping[str, str],
    got: Mapping[str, str],
    fresh: Mapping[str, str],
    *,
    rank: int,
    step: int,
) -> Check:
    name = wrong[0]
    what = "has other bits than" if name in got else "is absent, unlike"
    if name in got and got[name] == fresh.get(name):
        what = "has the bits of a job that loads nothing, not those"
    return Check(
        name="loaded_equals_saved",
        status=Status.different,
        detail=(
            f"resumed at step {step}, rank {rank}: '{name}' {what} after that step before the kill ({len(wrong)} of "
            f"{len(expected)} leaves)"
        ),
        first_difference=Difference.of_leaf(
            name, step=step, rank=rank, expected=expected[name], got=got.get(name, "absent")
        ),
        covered={"leaves": len(expected)},
    )
