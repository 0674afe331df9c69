"""Comes to the verdict of a proof of a command: what came back, what was lost, what came out otherwise, and by what."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ckptrun.checks.faults import check_faults
from ckptrun.checks.finite import check_finite
from ckptrun.checks.whole_runs import check_second_resume, check_steps
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.ledger_comparison import LedgerComparison, compare_ledgers
from ckptrun.evidence.mismatch import LedgerLine, Mismatch, compare_lines
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.evidence.starts import Start
from ckptrun.evidence.verdict import Check, Status, Verdict, verdict_of
from ckptrun.files import read_lines
from ckptrun.foreign.advice import advice_on
from ckptrun.foreign.alignment import Aligned, is_of_copy
from ckptrun.foreign.checkpoints import SavedStep
from ckptrun.foreign.translation import NO_BATCHES
from ckptrun.foreign.written import WRITTEN, blame_of
from ckptrun.proof.material import Material
from ckptrun.text import counted

_COMPARED = "losses, batches, gradients, options, parameters, moments, buffers"

_OWN_DATA = ", or by its data, which come from no DataLoader"
# What decides a step, in order; everything else follows.
_ORDER = {name: place for place, name in enumerate(("batch", "learning_rate", "skipped", "scaler", "copy", "loss"))}
# What a step comes to; it is in no checkpoint.
_NO_COMPONENTS = ("gradients", "loss")

# Checks that may find that the run ends elsewhere.
_OF_NUMBER = ("resume", "trajectory", "second_resume")

__all__ = [
    "StartFacts",
    "check_lost_work",
    "check_observed",
    "ends_elsewhere",
    "explained",
    "is_unexplained",
    "judge_command",
    "streams_apart",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartFacts:
    """What is known of a start beside its events."""

    aligned: Aligned
    newest_before: SavedStep | None
    """The newest complete checkpoint that there was when it began, of the form of what it has read."""
    newest_of_all: SavedStep | None = None
    """Of whichever form: a best model beside the last state."""
    steps: int
    """How many it has taken."""
    errors: Sequence[str]
    """What went wrong in the probe."""


def judge_command(
    material: Material,
    facts: Sequence[StartFacts],
    *,
    again: Path | None,
    notes: Sequence[str],
    operation: str = "",
    steps_again: int | None = None,
) -> Verdict:
    """Make every check.

    Args:
        material: What the legs have left.
        facts: Of each start of the run under proof.
        again: The run folder of a second reference, where there is one.
        notes: Sentences on what was not looked at.
        operation: The first operation that differs where nothing else explains it; empty: it is not known.
        steps_again: How many steps the second reference has taken, where it is a matter of that.
    """
    starts, steps = material.starts, material.subject.steps
    reference, run = material.reference.folder, material.run.folder
    checks = [check_faults(material.planned, material.fired)] if material.planned else []
    checks += check_finite(read_lines(ledger_file(reference, 0)))
    checks.append(check_observed(facts))
    failed = _failed(material, facts)
    checks += [check for check in failed if check.blame is None]
    checks.append(check_lost_work(starts, facts))
    found = compare_ledgers(reference, run, ranks=material.run.ranks)
    resumed_at = next((start.step for start in starts if start.resumed_from is not None), steps)
    trajectory = check_steps(
        found,
        wanted=steps,
        after=steps - resumed_at,
        is_complete=starts[-1].is_complete if starts else False,
        compared=_COMPARED,
    )
    differs = _not_deterministic(reference, again, found.first, ranks=material.run.ranks)
    loaded = _loaded(starts)
    if differs is not None:
        checks += [_unjudged(loaded, differs, operation), _unjudged(trajectory, differs, operation)]
    else:
        # What happened to a later start explains nothing.
        last = found.first.start if found.first is not None else len(starts)
        known = [c for c in checks if c.status is Status.different and (c.start is None or c.start <= last)]
        judged = trajectory if known else explained(trajectory, found, reference, run, operation)
        checks += [loaded, judged]
    # What a start did wrong before it ended too early is why it did.
    checks += [check for check in failed if check.blame is not None]
    if material.failure is None:
        checks.append(check_second_resume(starts, checks))
    if steps_again is not None and steps_again != steps:
        # First, as all else follows.
        checks = sorted((_uncounted(check, steps, steps_again) for check in checks), key=_is_decided_by_more)
    verdict = verdict_of(checks, moment_of=lambda check: check.start if check.start is not None else len(starts))
    return replace(verdict, path=str(run), advice=advice_on(verdict), not_exercised=[*_not_exercised(material), *notes])


def ends_elsewhere(verdict: Verdict) -> bool:
    """Whether all that is wrong is how many steps were taken."""
    wrong = [check for check in verdict.checks if check.status is Status.different]
    return bool(wrong) and all(_is_of_number(check) for check in wrong)


def _is_of_number(check: Check) -> bool:
    first = check.first_difference
    return check.name in _OF_NUMBER and first is not None and first.component == "progress"


def _is_decided_by_more(check: Check) -> bool:
    return "not deterministic" not in check.detail


def _uncounted(check: Check, steps: int, again: int) -> Check:
    """A check that has found another number of steps, where two runs that nothing happened to have done so, too."""
    if check.status is not Status.different or not _is_of_number(check):
        return check
    detail = (
        f"not deterministic: two runs that nothing happened to take {steps} and {again} steps. Let the job take a "
        "number of steps that does not go by the clock"
    )
    return replace(check, status=Status.not_verified, detail=detail, first_difference=None, blame=None)


def is_unexplained(verdict: Verdict) -> bool:
    """Whether a step came out otherwise, and nothing that was looked at says why; or it does so each time."""
    trajectory = next((check for check in verdict.checks if check.name == "trajectory"), None)
    if trajectory is None or trajectory.first_difference is None:
        return False
    if "not deterministic" in trajectory.detail:
        return True
    # That it first shows after the second resume explains nothing.
    others = [check for check in verdict.checks if check.name not in ("trajectory", "second_resume")]
    is_decided = any(check.status is Status.different for check in others)
    return not is_decided and trajectory.blame is None and trajectory.first_difference.component is None


def _loaded(starts: Sequence[Start]) -> Check:
    """``loaded_equals_saved``, of all starts."""
    made = [replace(c, start=s.index) for s in starts for c in s.checks if c.name == "loaded_equals_saved"]
    worst = next((check for check in made if check.status is Status.different), None)
    if worst is not None:
        return worst
    if not made:
        detail = "no start has taken a step after it had loaded a checkpoint"
        return Check(name="loaded_equals_saved", status=Status.not_verified, detail=detail)
    leaves = max(check.covered["leaves"] for check in made)
    loads = [start for start in starts if any(check.name == "loaded_equals_saved" for check in start.checks)]
    resumed = ", ".join(str(start.step) for start in loads)
    detail = (
        f"{leaves} leaves had the bits from before the kill after {counted(len(made), 'resume')} (at step {resumed})"
    )
    return Check(
        name="loaded_equals_saved", status=Status.equal, detail=detail, covered={"leaves": leaves, "loads": len(made)}
    )


def _failed(material: Material, facts: Sequence[StartFacts]) -> list[Check]:
    """A resume that ends in an error, or before it is done."""
    start = material.failure
    if start is None:
        return []
    # The one that only loads the end: a job that is killed after its last save is started there too.
    at_end = f", which began at the end of the job (step {start.step})," if start.step == material.subject.steps else ""
    which = f"start {start.index + 1}{at_end}"
    if start.failure is not None:
        text = start.failure.text
        first = Difference(step=start.step or None, expected="a run that goes on", got=text)
        detail = f"{which} could not go on: {text}"
    else:
        wanted = material.subject.steps
        taken = sum((one.aligned.step + one.steps for one in facts[start.index : start.index + 1]), 0)
        first = Difference(step=taken or None, leaf="step", component="progress", expected=wanted, got=taken)
        detail = f"{which} ended with exit code 0 after step {taken}, where the reference goes on to step {wanted}"
    return [
        Check(
            name="resume",
            status=Status.different,
            detail=detail,
            first_difference=first,
            blame=first.component,
            start=start.index,
        )
    ]


def check_observed(facts: Sequence[StartFacts]) -> Check:
    """``observed``: the probe has heard all that it listens to; where it failed, something may have gone unseen."""
    errors = [error for start in facts for error in start.errors]
    if errors:
        detail = f"the probe failed {counted(len(errors), 'time')} in the job's processes, first at {errors[0]}"
        return Check(name="observed", status=Status.not_verified, detail=detail)
    heard = sum(start.steps for start in facts)
    detail = f"{heard} steps were heard in {counted(len(facts), 'start')}, on every rank"
    return Check(name="observed", status=Status.equal, detail=detail, covered={"steps": heard})


def check_lost_work(starts: Sequence[Start], facts: Sequence[StartFacts]) -> Check:
    """``lost_work``: every start went on from the newest complete checkpoint that there was."""
    compared, passed = 0, ""
    for start, known in zip(starts, facts, strict=False):
        newest, other = known.newest_before, known.newest_of_all
        if newest is None or start.failure is not None or not known.steps:
            continue
        compared += 1
        if not passed and other is not None and other.step > max(newest.step, known.aligned.step):
            # Whether the job means to go on from that is not known.
            passed = (
                f" of the name that they read; start {start.index + 1} went on from step {known.aligned.step}, and "
                f"{other.place.name}, which it did not read, was of step {other.step}"
            )
        if known.aligned.step < newest.step:
            where = "from the beginning" if not known.aligned.step else f"from step {known.aligned.step}"
            detail = (
                f"start {start.index + 1} went on {where}, although the checkpoint of step {newest.step} was complete: "
                f"{newest.place.name}"
            )
            return Check(
                name="lost_work",
                status=Status.different,
                detail=detail,
                first_difference=Difference(
                    step=newest.step, leaf="step", component="progress", expected=newest.step, got=known.aligned.step
                ),
                start=start.index,
            )
    if not compared:
        detail = "there was no complete checkpoint that a start could have gone on from"
        return Check(name="lost_work", status=Status.not_verified, detail=detail)
    detail = f"{counted(compared, 'start')} went on from the newest complete checkpoint{passed}"
    return Check(name="lost_work", status=Status.equal, detail=detail, covered={"starts": compared})


def _not_deterministic(reference: Path, again: Path | None, first: Mismatch | None, *, ranks: int) -> Mismatch | None:
    """The first thing that two runs to which nothing happened do not agree on, up to where the run differs."""
    if first is None or first.start == 0:
        # Nothing had happened to the first start either.
        return first
    if again is None:
        return None
    return compare_ledgers(reference, again, ranks=ranks, last_step=first.step).first


def _unjudged(check: Check, differs: Mismatch, operation: str) -> Check:
    if check.status is not Status.different:
        return check
    where = f"{differs}; {operation}" if operation else str(differs)
    detail = f"not deterministic: two runs that nothing happened to differ at {where}. Try job.deterministic=true"
    return replace(
        check, status=Status.not_verified, detail=detail, first_difference=differs.as_difference(), blame=None
    )


def explained(check: Check, found: LedgerComparison, reference: Path, run: Path, operation: str = "") -> Check:
    """Return a check of the steps with what led to the difference, and whose fault that is.

    Args:
        check: As ``check_steps`` makes it.
        found: What it was made of.
        reference: The run folder that was compared with.
        run: The other one.
        operation: The first operation that differs; empty: it is not known.
    """
    if found.first is None:
        return check
    first = _nearest_to_cause(found.first, reference, run, ranks=found.ranks)
    if first is not found.first:
        check = replace(check, detail=str(first), first_difference=first.as_difference(), start=first.start)
    blame, why = first.component, ""
    if first.field.startswith(WRITTEN):
        blame = blame_of(first.field)
        why = "all that the step took was the same: it is something else that the job keeps, or not what is trained"
    elif first.field == "batch":
        why = _place_of_batch(first, reference)
    if first.component not in ("schedule", "optimizer", "scaler") and not first.field.startswith(WRITTEN):
        streams = _streams_apart(reference, run, first, ranks=found.ranks)
        # Buffers beside an equal loss: what the forward pass drew was the same, or nothing goes by it.
        has_loss = any(line["step"] == first.step and line["loss"] for line in read_lines(ledger_file(reference, 0)))
        counts = blame in (None, "data", "model", *_NO_COMPONENTS) or (blame == "buffers" and not has_loss)
        if streams and counts:
            blame, why = "rng", f"random streams stand elsewhere than in the reference: {', '.join(streams)}"
    if blame in _NO_COMPONENTS:
        blame = None
    if blame is None:
        why = why or _something_else(first, reference, run)
        why += f"; {operation}" if operation else ""
    difference = None if check.first_difference is None else replace(check.first_difference, component=blame)
    detail = f"{check.detail}; {why}" if why else check.detail
    return replace(check, detail=detail, blame=blame, first_difference=difference)


def _something_else(first: Mismatch, reference: Path, run: Path) -> str:
    """What is left where all that was looked at is the same. Data that come from no loader are not looked at."""
    lines = [line for line in read_lines(ledger_file(reference, first.rank)) if line["step"] == first.step]
    mine = [line for line in read_lines(ledger_file(run, first.rank)) if line["step"] == first.step]
    wanted, taken = (_passes(one) for one in (lines, [line for line in mine if line["start"] == first.start]))
    if wanted != taken:
        return (
            f"it comes of {counted(taken, 'backward pass', 'backward passes')}, of {wanted} in the reference: a "
            "checkpoint that is saved within an accumulation has not the gradients of before"
        )
    has_batches = any(line["batch"] != NO_BATCHES for line in lines)
    same, data = ("parameters, moments, batch", "") if has_batches else ("parameters, moments", _OWN_DATA)
    return f"{same} and random streams were the same: the step goes by something else, which did not come back{data}"


def _passes(lines: Sequence[LedgerLine]) -> int:
    """How many backward passes led to a step."""
    return sum((line["loss"] is not None) + sum(leaf.startswith("loss.") for leaf in line["leaves"]) for line in lines)


def _place_of_batch(first: Mismatch, reference: Path) -> str:
    """Where the reference has the batch that came instead."""
    lines = read_lines(ledger_file(reference, first.rank))
    steps = [line["step"] for line in lines if line["batch"] == first.got]
    if not steps:
        return "the reference has it at no step: the data are in another order, or drawn anew"
    return f"the reference has it at step {steps[0]}: the data are at another place"


def streams_apart(
    reference: Sequence[LedgerLine], mine: Sequence[LedgerLine], *, step: int, start: int, field: str
) -> list[str]:
    """Streams that stand elsewhere after ``step`` than in the reference, and may be why ``field`` differs there.

    Of those that are seeded at all. For a batch: those that its loader has drawn from; one that stood where it should
    when a loader began, right after the resume or now, has come back, and what was drawn from it afterwards is another
    matter. For what is computed from the batch: one that the reference does not draw from in that step has no part.
    """
    theirs = {line["step"]: line["streams"] for line in reference}
    before = [line for line in mine if line["start"] == 0]
    seeded = {
        name
        for name in theirs.get(step, {})
        if before and all(line["streams"].get(name) == theirs.get(line["step"], {}).get(name) for line in before)
    }
    of_start = [line for line in mine if line["start"] == start]
    line = next((line for line in of_start if line["step"] == step), None)
    if line is None:
        return []
    if field == "batch":
        there = next(line for line in reference if line["step"] == step)
        seeded &= {*there["drawn"], *line["drawn"]}
        began = [(one, theirs.get(at["step"] - 1, {})) for at in (of_start[0], line) for one in at["iterators"]]
        innocent = {name for one, there in began for name in seeded if one.get(name) == there.get(name)}
    else:
        innocent = {name for name in seeded if theirs.get(step - 1, {}).get(name) == theirs[step].get(name)}
    return sorted(name for name in seeded - innocent if line["streams"].get(name) != theirs[step].get(name))


def _streams_apart(reference: Path, run: Path, first: Mismatch, *, ranks: int) -> list[str]:
    """Those of any rank: gradients carry what one of them draws to all others."""
    found = []
    for rank in range(ranks):
        files = [read_lines(ledger_file(folder, rank)) for folder in (reference, run)]
        apart = streams_apart(files[0], files[1], step=first.step, start=first.start, field=first.field)
        found += [name if ranks == 1 else f"{name} (rank {rank})" for name in apart]
    return found


def _nearest_to_cause(first: Mismatch, reference: Path, run: Path, *, ranks: int) -> Mismatch:
    """Of all ranks, what differs at the first step and comes first in a step: a batch of one rank before the gradients.

    Gradients are those of all ranks, so that a rank with nothing else amiss may be the first that is looked at.
    """
    found = [first]
    for rank in range(ranks):
        theirs, mine = (read_lines(ledger_file(folder, rank)) for folder in (reference, run))
        expected = next((line for line in theirs if line["step"] == first.step), None)
        got = next((line for line in mine if (line["step"], line["start"]) == (first.step, first.start)), None)
        if expected is not None and got is not None:
            found += _first_of(compare_lines(expected, got, rank=rank))
    return min(found, key=_distance)


def _first_of(mismatches: Sequence[Mismatch]) -> Sequence[Mismatch]:
    """That which is nearest to the cause, of those of one rank."""
    return [min(mismatches, key=_distance)] if mismatches else []


def _distance(one: Mismatch) -> tuple[int, bool, bool, int]:
    """How far from the cause: before other leaves comes what only one of the two has, its gradient last."""
    is_alone = None in (one.expected, one.got)
    is_result = is_alone and one.component in _NO_COMPONENTS
    # The loss that backward starts from is scaled already, and may go by a teacher.
    field = "scaler" if one.component == "scaler" else "copy" if is_of_copy(one.field) else one.field
    return _ORDER.get(field, len(_ORDER)), not is_alone, is_result, one.rank


def _not_exercised(material: Material) -> list[str]:
    found = []
    resumed = [start for start in material.starts if start.resumed_from is not None]
    if len(resumed) < 2:
        found.append("second restart: the run was resumed once" if resumed else "restart: the run was never resumed")
    if not any(fault.point in ("at_request", "writing") for fault in material.fired):
        found.append("a failure during a save")
    found.append("controls: ckptrun cannot leave a component out of a checkpoint that is not its own")
    return found
