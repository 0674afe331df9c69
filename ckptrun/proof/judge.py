"""Comes to the verdict of a proof, and has the cause of a difference looked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from ckptrun.checks.causes import moment_of
from ckptrun.checks.checkpoints import compare_checkpoints
from ckptrun.checks.faults import check_faults
from ckptrun.checks.finite import check_finite
from ckptrun.checks.ignored import Ignored
from ckptrun.checks.not_exercised import not_exercised
from ckptrun.checks.nothing_lost import check_nothing_lost
from ckptrun.checks.saved import check_saved
from ckptrun.checks.saves_differ import check_saves_differ
from ckptrun.checks.whole_runs import (
    check_controls,
    check_invisible,
    check_loads,
    check_samples,
    check_second_resume,
    check_starts_replicas,
    check_steps,
    idle_controls,
)
from ckptrun.engine.commit import list_committed
from ckptrun.engine.locate import locate
from ckptrun.evidence.ledger_comparison import LedgerComparison, compare_ledgers
from ckptrun.evidence.mismatch import LedgerLine
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.evidence.starts import Start
from ckptrun.evidence.verdict import Check, Status, Verdict, verdict_of
from ckptrun.fault import Fired
from ckptrun.files import read_lines
from ckptrun.proof.diagnose import Diagnosis, Suspect, diagnose
from ckptrun.proof.failed import check_of_failure
from ckptrun.proof.material import Material
from ckptrun.proof.occurred import occurred
from ckptrun.proof.outside_files import OutsideFiles
from ckptrun.proof.places import leaf_names
from ckptrun.proof.subject import StartRun

__all__ = ["judge"]


def judge(
    material: Material, *, outside: OutsideFiles, start_run: StartRun, controls: Callable[[], Sequence[Start]]
) -> Verdict:
    """Make every check of a run of ours, and look for the cause of a difference.

    Args:
        material: What there is.
        outside: Knows which files legs have in common.
        start_run: Starts another leg.
        controls: Runs the controls.
    """
    checks = [check_faults(material.planned, material.fired)] if material.planned else []
    checks += check_finite(read_lines(ledger_file(material.reference.folder, 0)))
    checks += _noisy(material.starts)
    counts = Ignored(material.ignore).counts
    refused = _refused_save(material)
    damaged = _still_damaged(material)
    checks.append(refused or check_saved(_committed(material), damaged=damaged, counts=counts))
    checks.append(check_loads(material.starts))
    checks.append(check_nothing_lost(material.starts, damaged=_damage(material), last_step=material.subject.steps))
    checks += _failed_resume(material) if refused is None else []
    differ = check_saves_differ(_committed(material), _ledgers(material), counts=counts)
    checks.append(differ or _only_one_save())
    checks = [_in_interpreter(check, material) for check in checks]
    shared, not_covered = outside.check()
    checks.append(shared)
    found = _against_reference(material)
    compared = _compared(material, found)
    replicas = check_starts_replicas(material.starts)
    if shared.status is Status.equal:
        compared = _diagnosed(material, found, compared, others=[*checks, replicas], start_run=start_run)
    else:
        compared = [_unjudged(check) for check in compared]
    known = {check.name for check in checks}
    checks += [check for check in compared if check.name not in known]
    second = check_second_resume(material.starts, [*checks, replicas], failed=material.failure)
    checks += [replicas, second]
    asked = material.has_controls
    is_different = any(check.status is Status.different for check in checks)
    made: Sequence[Start] = ()
    if is_different and asked:
        detail = "not made: something differs already"
        checks.append(Check(name="controls", status=Status.not_verified, detail=detail, is_needed=False))
    else:
        made = controls() if asked else []
        checks.append(check_controls(made, asked=asked))
    checks += _damage_unnoticed(material)
    verdict = verdict_of(checks, moment_of=partial(moment_of, starts=material.starts))
    return replace(
        verdict,
        advice=f"{verdict.advice}{material.subject.code_of(verdict.blame)}" if verdict.advice else "",
        path=str(material.run.folder),
        not_exercised=[*not_exercised(occurred(material)), *idle_controls(made)],
        not_covered=[*not_covered, *_exempt(material)],
    )


def _exempt(material: Material) -> list[str]:
    if not material.ignore:
        return []
    return Ignored(material.ignore).sentences(leaf_names(material.reference.checkpoint(material.subject.steps)))


def _committed(material: Material) -> list[str]:
    return [material.run.checkpoint(step) for step in list_committed(material.run.checkpoints)]


def _ledgers(material: Material) -> list[list[LedgerLine]]:
    """Of every rank that has taken a step in any start of the run under proof."""
    ranks = range(max(material.run.ranks, material.later_run.ranks))
    return [[*read_lines(ledger_file(material.run.folder, rank))] for rank in ranks]


def _damage(material: Material) -> dict[str, Fired]:
    """Checkpoint -> the fault that has damaged it."""
    return {str(locate(material.run.checkpoint(fault.step))): fault for fault in material.fired if fault.kind.damages}


def _noticed(material: Material) -> set[str]:
    return {str(locate(folder)) for start in material.starts for folder in start.damaged}


def _still_damaged(material: Material) -> dict[str, str]:
    """Damaged checkpoints that no later save has replaced."""
    commits = [str(locate(folder)) for start in material.starts for folder in start.committed]
    return {folder: str(fault) for folder, fault in _damage(material).items() if commits.count(folder) < 2}


def _damage_unnoticed(material: Material) -> list[Check]:
    """A checkpoint was damaged on purpose: the resume must have found that, and gone back to another."""
    damage, noticed = _damage(material), _noticed(material)
    if not damage:
        return []
    missed = [str(fault) for folder, fault in damage.items() if folder not in noticed]
    if missed:
        detail = f"{missed[0]}: no resume has found the checkpoint damaged"
        return [Check(name="damage_noticed", status=Status.different, detail=detail)]
    detail = "; ".join(f"{fault}: found damaged by the resume, which went back to another" for fault in damage.values())
    return [Check(name="damage_noticed", status=Status.equal, detail=detail, covered={"checkpoints": len(damage)})]


def _noisy(starts: Sequence[Start]) -> list[Check]:
    """A start that has found a component which leaves a trace when it is asked for its state."""
    found = [
        replace(check, start=start.index)
        for start in starts
        for check in start.checks
        if check.name == "saving_is_invisible"
    ]
    return found[:1]


def _refused_save(material: Material) -> Check | None:
    """A save that was refused because it was not of what was live."""
    start = material.failure
    if start is None or start.failure is None or start.failure.check is None:
        return None
    return check_of_failure(start, start.failure.check, "")


def _failed_resume(material: Material) -> list[Check]:
    """A resume that ends in an error: the job does not survive."""
    start = material.failure
    return (
        []
        if start is None
        else [check_of_failure(start, "resume", f"start {start.index + 1} of the run could not go on: ")]
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """The ledgers of the first start, and of the later ones, against their references."""

    first: LedgerComparison
    later: LedgerComparison


def _against_reference(material: Material) -> _Found:
    run, last = material.run, len(material.starts)
    reference = material.reference.folder
    first = compare_ledgers(reference, run.folder, ranks=run.ranks, starts=range(0, 1))
    if material.subject.reshapes:
        later = compare_ledgers(
            material.reference_of_later.folder,
            run.folder,
            ranks=material.later_run.ranks,
            starts=range(1, max(last, 1)),
        )
    else:
        later = compare_ledgers(reference, run.folder, ranks=run.ranks)
    return _Found(first=first, later=later)


def _compared(material: Material, found: _Found) -> list[Check]:
    """``trajectory``, ``final_state``, ``saving_is_invisible`` and, on another mesh, ``data_order``."""
    steps, reshapes = material.subject.steps, material.subject.reshapes
    resumed_at = material.resumes[0].step if material.resumes else steps
    saves = sum(len(start.committed) for start in material.starts) - 1
    is_whole = found.later.first is None and not reshapes
    checks = []
    if material.failure is None:
        wanted = steps - resumed_at if reshapes else steps
        is_complete = material.starts[-1].is_complete
        checks.append(check_steps(found.later, wanted=wanted, after=steps - resumed_at, is_complete=is_complete))
        ends = (material.reference_of_later.checkpoint(steps), material.run.checkpoint(steps))
        checks.append(compare_checkpoints(*ends, step=steps, counts=Ignored(material.ignore).counts))
    checks.append(check_invisible(found.later if is_whole else found.first, saves=max(0, saves)))
    if reshapes:
        checks.append(
            check_samples(
                material.reference.folder,
                material.run.folder,
                expected_ranks=material.run.ranks,
                got_ranks=material.later_run.ranks,
                starts=range(1, len(material.starts)),
            )
        )
    return checks


def _only_one_save() -> Check:
    detail = "there are no two checkpoints, one after the other"
    return Check(name="saves_differ", status=Status.not_verified, detail=detail, is_needed=False)


def _diagnosed(
    material: Material, found: _Found, compared: Sequence[Check], *, others: Sequence[Check], start_run: StartRun
) -> list[Check]:
    """The comparisons with the reference, with the cause of a difference."""
    suspect = _suspect(material, found, compared, others=others)
    if suspect is None:
        return list(compared)
    diagnosis = diagnose(suspect, material, start_run=start_run)
    return [_explained(check, diagnosis) for check in compared]


def _in_interpreter(check: Check, material: Material) -> Check:
    """What a resume in the other interpreter has found, with a word on that."""
    fresh = next((start for start in material.starts if start.fresh), None)
    if fresh is None or check.status is not Status.different:
        return check
    failed = material.failure is not None and material.failure.index == fresh.index and check.name == "resume"
    found = any(own.name == check.name and own.status is Status.different for own in fresh.checks)
    if not (failed or found):
        return check
    word = (
        f"start {fresh.index + 1} ran in another interpreter (PYTHONHASHSEED={fresh.hash_seed}): state whose order "
        "comes from a set, or from hash(), is another one there"
    )
    return replace(check, detail=f"{check.detail} ({word})")


def _unjudged(check: Check) -> Check:
    """A comparison of legs that were not independent: what differs may be what one of them left to the other."""
    if check.status is not Status.different:
        return check
    detail = f"not judged, as legs shared files: {check.detail}"
    return replace(check, status=Status.not_verified, detail=detail, blame=None)


def _suspect(
    material: Material, found: _Found, compared: Sequence[Check], *, others: Sequence[Check]
) -> Suspect | None:
    """What needs an explanation: a difference that nothing explains which was there before it."""
    steps = [check for check in compared if check.status is Status.different]
    first = min((moment_of(check, material.starts) for check in steps), default=None)
    known = [moment_of(check, material.starts) for check in others if check.status is Status.different]
    if first is None or any(moment < first for moment in known):
        return None
    mismatch = found.first.first or found.later.first
    if mismatch is not None:
        start = material.starts[mismatch.start] if mismatch.start < len(material.starts) else material.starts[-1]
        return Suspect(mismatch=mismatch, start=start)
    if any(check.name == "final_state" and check.status is Status.different for check in compared):
        return Suspect(mismatch=None, start=material.starts[-1])
    return None


def _explained(check: Check, diagnosis: Diagnosis) -> Check:
    """A check that found a difference, with its cause; not the resume's fault when the reference does not repeat."""
    is_cause = diagnosis.is_of_saving and check.name == "saving_is_invisible"
    if check.status is not Status.different and not is_cause:
        return check
    first = diagnosis.first_difference or check.first_difference
    if not diagnosis.is_deterministic:
        detail = f"not deterministic: {diagnosis.text}" if diagnosis.is_known else diagnosis.text
        return replace(check, status=Status.not_verified, detail=detail, first_difference=first, blame=None)
    is_said = is_cause or not diagnosis.text or check.detail in diagnosis.text
    return replace(
        check,
        status=Status.different,
        detail=(diagnosis.text or check.detail) if is_said else f"{diagnosis.text}. {check.detail}",
        first_difference=first,
        blame=diagnosis.blame or check.blame or (first.component if first is not None else None),
    )
