"""Checks over whole runs, made by who started them, from the files that they left. No process group, no ranks.

What each start of the run under proof has compared by itself stands in its record; here it is put together, and the
ledgers are held against those of the reference.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ckptrun.evidence.difference import Difference
from ckptrun.evidence.ledger_comparison import LedgerComparison
from ckptrun.evidence.mismatch import LedgerLine
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.evidence.starts import Start
from ckptrun.evidence.verdict import Check, Status
from ckptrun.files import read_lines
from ckptrun.text import counted

__all__ = [
    "check_controls",
    "check_invisible",
    "check_loads",
    "check_samples",
    "check_second_resume",
    "check_starts_replicas",
    "check_steps",
    "idle_controls",
    "second_resumes",
]

_COMPARED = "loss, gradient norm, learning rate, batches, random streams"
_BEYOND = "was taken, past the end of the reference"


def check_loads(starts: Sequence[Start]) -> Check:
    """``loaded_equals_saved``: what every start has loaded, and what fresh objects gave back at the end."""
    made = _made("loaded_equals_saved", starts)
    resumed = [start for start in starts if start.resumed_from is not None]
    worst = _worst(made)
    if worst is not None:
        return worst
    if not resumed or not made:
        detail = "no start has loaded a checkpoint: there was none when it began"
        return Check(name="loaded_equals_saved", status=Status.not_verified, detail=detail)
    covered = {
        "leaves": max(check.covered.get("leaves", 0) for check in made),
        "ranks": max(check.covered.get("ranks", 0) for check in made),
        "loads": len(made),
    }
    steps = ", ".join(str(start.step) for start in resumed)
    detail = (
        f"{covered['leaves']} leaves on {counted(covered['ranks'], 'rank')} had the bits that were saved, after each "
        f"of {len(made)} loads (resumed at step {steps})"
    )
    return Check(name="loaded_equals_saved", status=Status.equal, detail=detail, covered=covered)


def check_starts_replicas(starts: Sequence[Start]) -> Check:
    """``replicas``: after each load and at the end."""
    made = _made("replicas", starts)
    worst = _worst(made)
    if worst is not None:
        return worst
    if not made:
        return Check(name="replicas", status=Status.not_verified, detail="no start has compared its ranks")
    covered = {key: max(check.covered.get(key, 0) for check in made) for key in ("leaves", "ranks")}
    ranks = counted(covered["ranks"], "rank")
    detail = f"{ranks} agreed on every shared leaf, {len(made)} times: after loads and at the end"
    return Check(name="replicas", status=Status.equal, detail=detail, covered=covered)


def check_steps(
    found: LedgerComparison, *, wanted: int, after: int, is_complete: bool = True, compared: str = _COMPARED
) -> Check:
    """``trajectory``: the run, all its starts together, repeats the reference step by step.

    Args:
        found: All starts against the reference.
        wanted: How many steps there must be to compare.
        after: How many of them came after the first resume.
        is_complete: Whether the run says that it has taken all its steps.
        compared: What a line of the ledgers holds, in words.
    """
    covered = {"steps": found.steps, "ranks": found.ranks, "repeated_steps": found.repeated, "lines": found.lines}
    if found.first is not None:
        first = found.first
        return Check(
            name="trajectory",
            status=Status.different,
            detail=str(first),
            first_difference=first.as_difference(),
            covered=covered,
            start=first.start,
        )
    if is_complete and (found.lacking is not None or found.beyond is not None):
        return _other_steps(found, covered)
    if found.steps < wanted:
        detail = f"only {found.steps} of {wanted} steps stand in the ledgers of both the run and its reference"
        return Check(name="trajectory", status=Status.not_verified, detail=detail, covered=covered)
    detail = (
        f"{found.steps} steps on {counted(found.ranks, 'rank')} repeat the reference ({after} of them after the first "
        f"resume, {found.repeated} done more than once): {compared}"
    )
    return Check(name="trajectory", status=Status.equal, detail=detail, covered=covered)


def _other_steps(found: LedgerComparison, covered: Mapping[str, int]) -> Check:
    """The run ended by itself, after other steps than the reference has."""
    step = found.lacking if found.lacking is not None else found.beyond
    expected, got = ("taken", "left out") if found.lacking is not None else ("no such step", "taken")
    what = "was left out, and the run says that it is complete" if found.lacking is not None else _BEYOND
    return Check(
        name="trajectory",
        status=Status.different,
        detail=f"step {step} {what}",
        first_difference=Difference.of_leaf("progress.step", step=step, rank=None, expected=expected, got=got),
        covered=covered,
    )


def check_invisible(found: LedgerComparison, *, saves: int) -> Check:
    """``saving_is_invisible``: what the run did is what the reference did, which saves nothing before its end.

    Args:
        found: The first start, which has loaded nothing, against the reference; or all starts if nothing differs.
        saves: How many checkpoints the run has committed before its last.
    """
    name = "saving_is_invisible"
    covered = {"steps": found.steps, "saves": saves}
    if found.first is not None:
        detail = f"before anything was resumed, a run that saves differed from one that does not: {found.first!s}"
        return Check(
            name=name,
            status=Status.different,
            detail=detail,
            first_difference=found.first.as_difference(),
            covered=covered,
            start=found.first.start,
        )
    if not saves:
        detail = "nothing was saved before the last step"
        return Check(name=name, status=Status.not_verified, detail=detail, covered=covered, is_needed=False)
    if not found.steps:
        detail = "no step of the run has a counterpart in the reference"
        return Check(name=name, status=Status.not_verified, detail=detail, covered=covered)
    detail = f"{found.steps} steps beside {saves} saves came out as in a run that saves nothing before its end"
    return Check(name=name, status=Status.equal, detail=detail, covered=covered)


def second_resumes(starts: Sequence[Start]) -> list[Start]:
    """Starts that went on from a checkpoint which a start that had itself resumed has saved.

    Where a run was killed before its first checkpoint, and begun anew, a checkpoint of that second start will do.
    """
    resumed = [start for start in starts if start.resumed_from is not None]
    by_resumed = _committed_by(starts, after=resumed[0].index) if resumed else set()
    strictly = [start for start in resumed[1:] if start.resumed_from in by_resumed]
    return strictly or [start for start in resumed[1:] if start.resumed_from in _committed_by(starts, after=1)]


def check_second_resume(starts: Sequence[Start], others: Sequence[Check], *, failed: Start | None = None) -> Check:
    """``second_resume``: a checkpoint taken by a resumed run was resumed from, and what came of it is equal too.

    Args:
        starts: Of the run.
        others: The checks that were made of it.
        failed: The start that ended in a way that was not planned.
    """
    second = second_resumes(starts)
    if not second:
        detail = "no start went on from a checkpoint that a resumed start had saved"
        return Check(name="second_resume", status=Status.not_verified, detail=detail)
    if failed is not None and failed.index >= second[0].index:
        detail = f"resumed again at step {second[0].step}, and start {failed.index + 1} could not go on"
        return Check(
            name="second_resume",
            status=Status.different,
            detail=detail,
            blame=failed.failure.component if failed.failure is not None else None,
        )
    # Steps that came out otherwise when they were done again: what the trajectory says of them holds for this, too.
    unjudged = next((c for c in others if c.name == "trajectory" and c.status is Status.not_verified), None)
    bad = [check for check in second[0].checks if check.status is Status.different]
    if unjudged is not None and bad and all(check.name == "repeats" for check in bad):
        return Check(name="second_resume", status=Status.not_verified, detail=unjudged.detail)
    late = [c for c in others if c.status is Status.different and _step_of(c) > second[0].step]
    worst = bad or late
    if worst:
        detail = f"after the resume at step {second[0].step}: {worst[0].name}: {worst[0].detail}"
        first = worst[0].first_difference
        return Check(
            name="second_resume",
            status=Status.different,
            detail=detail,
            first_difference=first,
            start=worst[0].start if worst[0].start is not None else second[0].index,
        )
    detail = f"resumed again at step {second[0].step}, from a checkpoint that a resumed run had saved; all as before"
    covered = {"resumes": sum(start.resumed_from is not None for start in starts)}
    return Check(name="second_resume", status=Status.equal, detail=detail, covered=covered)


def check_controls(starts: Sequence[Start], *, asked: bool) -> Check:
    """``controls``: each component that was left out on purpose was found missing, and had an effect."""
    if not asked:
        detail = "switched off (proof.controls=none)"
        return Check(name="controls", status=Status.not_verified, detail=detail, is_needed=False)
    controls = [control for start in starts for control in start.controls]
    if not controls or starts[-1].ended is None:
        failure = starts[-1].failure if starts else None
        why = "" if failure is None else f": rank {failure.rank}: {failure.text}"
        detail = f"the controls did not run to their end{why}"
        return Check(name="controls", status=Status.not_verified, detail=detail)
    exercised = [control for control in controls if control["is_exercised"]]
    covered = {"controls": len(exercised)}
    vacuous = [control for control in exercised if not control["is_found"]]
    if vacuous:
        detail = f"vacuous: {vacuous[0]['detail']}"
        return Check(name="controls", status=Status.not_verified, detail=detail, covered=covered)
    if not exercised:
        detail = "; ".join(idle_controls(starts))
        return Check(name="controls", status=Status.not_verified, detail=detail, covered=covered, is_needed=False)
    detail = "; ".join(control["detail"] for control in exercised)
    return Check(name="controls", status=Status.equal, detail=detail, covered=covered)


def idle_controls(starts: Sequence[Start]) -> list[str]:
    """Say of each control with nothing to leave out why that is so."""
    controls = [control for start in starts for control in start.controls]
    return [f"control of {one['component']}: {one['detail']}" for one in controls if not one["is_exercised"]]


def check_samples(expected: Path, got: Path, *, expected_ranks: int, got_ranks: int, starts: range) -> Check:
    """``data_order``: on another mesh the same samples come in the same order, each exactly once.

    Samples are compared by content and by their place among all that were ever taken; the batches that they come in
    are others.
    """
    wanted = _places(expected, range(expected_ranks), starts=None)
    taken = _places(got, range(got_ranks), starts=starts)
    both = sorted(wanted.keys() & taken.keys())
    covered = {"samples": len(both), "ranks": got_ranks}
    wrong = next((place for place in both if wanted[place][0] != taken[place][0]), None)
    if wrong is not None:
        step, rank = taken[wrong][1], taken[wrong][2]
        return Check(
            name="data_order",
            status=Status.different,
            detail=f"sample {wrong}, step {step}, rank {rank}: another one than before the mesh was changed",
            first_difference=Difference(
                step=step,
                rank=rank,
                component="data",
                leaf="batch",
                index=[wrong],
                expected=wanted[wrong][0],
                got=taken[wrong][0],
            ),
            covered=covered,
        )
    if not both or both != list(range(both[0], both[0] + len(both))):
        detail = f"{len(both)} samples of the resumed run have a counterpart in the reference, not all in a row"
        return Check(name="data_order", status=Status.not_verified, detail=detail, covered=covered)
    detail = f"samples {both[0]} to {both[-1]} came in the same order, each once"
    return Check(name="data_order", status=Status.equal, detail=detail, covered=covered)


def _places(run_dir: Path, ranks: range, *, starts: range | None) -> dict[int, tuple[str, int, int]]:
    """Place among all samples -> (digest, step, rank) in the last start that took it."""
    found: dict[int, tuple[str, int, int]] = {}
    for rank in ranks:
        for line in read_lines(ledger_file(run_dir, rank)):
            if starts is None or line["start"] in starts:
                found.update(_of_line(line, rank))
    return found


def _of_line(line: LedgerLine, rank: int) -> dict[int, tuple[str, int, int]]:
    data, place = line["data"], line["data"]["position"]
    found = {}
    for batch in data["samples"]:
        begin = place + data["rank"] * len(batch)
        found.update({begin + i: (sample, line["step"], rank) for i, sample in enumerate(batch)})
        place += data["of"] * len(batch)
    return found


def _committed_by(starts: Sequence[Start], *, after: int) -> set[str]:
    return {folder for start in starts if start.index >= after for folder in start.committed}


def _made(name: str, starts: Sequence[Start]) -> list[Check]:
    """What starts say that a check came to, in the order in which they did."""
    return [replace(check, start=start.index) for start in starts for check in start.checks if check.name == name]


def _worst(checks: Sequence[Check]) -> Check | None:
    for status in (Status.different, Status.not_verified):
        for check in checks:
            if check.status is status:
                return replace(check, is_needed=True)
    return None


def _step_of(check: Check) -> int:
    step = None if check.first_difference is None else check.first_difference.step
    return step or 0
