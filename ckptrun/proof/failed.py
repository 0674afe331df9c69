"""What is said of a job that does not run, or of a start that ended in an error. Torch-free."""

from collections.abc import Sequence

from ckptrun.evidence.difference import Difference
from ckptrun.evidence.starts import Start
from ckptrun.evidence.verdict import Check, Status, Verdict, verdict_of

__all__ = ["check_of_failure", "judge_failed"]


def judge_failed(starts: Sequence[Start], what: str, *, why: str) -> Verdict:
    """The verdict when the job itself does not run; ``why`` is for ranks that have not said it themselves.

    One that ends because a save refused to commit what was not live is a difference, found by the engine itself.
    """
    failure = starts[-1].failure if starts else None
    if failure is not None and failure.check is not None:
        return verdict_of([check_of_failure(starts[-1], failure.check, f"{what} ended: ")])
    # Who lost contact knows less than the signal that ended the other rank.
    text = failure.text if failure is not None and not failure.is_secondary else why
    return Verdict(status=Status.not_verified, checks=(), reason=f"{what} failed: {text}")


def check_of_failure(start: Start, name: str, what: str) -> Check:
    """The check that a start fails which ended in an error; ``what`` comes before the error's own words."""
    failure = start.failure
    text = failure.text if failure is not None else "its ranks ended with exit code 0 before they were done"
    leaf = failure.leaves[0] if failure is not None and failure.leaves else None
    component = failure.component if failure is not None else None
    first = Difference(
        step=start.step or None,
        rank=failure.rank if failure is not None else None,
        component=component,
        leaf=leaf,
        expected="a run that goes on",
        got=text,
    )
    who = "" if failure is None else f"rank {failure.rank}: "
    return Check(
        name=name,
        status=Status.different,
        detail=f"{what}{who}{text}",
        first_difference=first,
        blame=component,
        start=start.index,
    )
