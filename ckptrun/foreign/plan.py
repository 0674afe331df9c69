"""Where a job is made to fail: from ``fault=...``, and from what the reference has shown of its steps and saves."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ckptrun.config.fault import ALL_RANKS, ANY_RANK, FaultConfig, FaultKind, FaultPoint
from ckptrun.errors import ConfigError
from ckptrun.fault.plan import PlannedFault, armed

__all__ = ["JobFacts", "armed_in_start", "check_fault", "plan_job_faults"]

_POINTS = (
    FaultPoint.loading,
    FaultPoint.before_step,
    FaultPoint.after_forward,
    FaultPoint.mid_accumulation,
    FaultPoint.after_backward,
    FaultPoint.after_optimizer,
    FaultPoint.at_request,
    FaultPoint.writing,
    FaultPoint.before_commit,
    FaultPoint.after_commit,
    FaultPoint.removing,
)
_DONE_AT = {
    FaultPoint.before_commit: "renamed",
    FaultPoint.after_commit: "renamed",
    FaultPoint.removing: "removed",
}
_OF_SAVE = (FaultPoint.at_request, FaultPoint.writing, *_DONE_AT)
# The checkpoint of the step is whole when they strike.
_AFTER_SAVE = (None, FaultPoint.after_commit)
# A job may answer them with a save, at whatever step, before it ends.
_ANSWERED = (FaultKind.sigterm, FaultKind.sigint)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What the reference has shown."""

    steps: int
    ranks: int
    saves: Sequence[int]
    """Steps that a checkpoint was saved after."""
    renames: Sequence[int] = ()
    """Steps that something in its folder was renamed after."""
    removals: Sequence[int] = ()
    """The same of what was removed."""
    accumulates: bool = True
    """Whether there is more than one backward pass in a step."""


def check_fault(fault: FaultConfig) -> None:
    """See that a fault can strike a job that is not ours.

    Raises:
        ConfigError: It is one of ckptrun's own storage, or strikes at a point that only its own loop has.
    """
    entries = [("fault", fault), *((f"fault.more[{i}]", fault.further(i, e)) for i, e in enumerate(fault.more))]
    for key, one in entries:
        if one.kind.is_storage or one.kind is FaultKind.chaos:
            kinds = ", ".join(k for k in FaultKind if not k.is_storage and k not in (FaultKind.none, FaultKind.chaos))
            raise ConfigError(
                f"{key}={one.kind} strikes only ckptrun's own runs. For a command choose one of: {kinds}."
            )
        if one.point is not None and one.point not in _POINTS:
            raise ConfigError(
                f"{key}.point={one.point} is a point of ckptrun's own saves. For a command choose one of: "
                f"{', '.join(_POINTS)}."
            )
        if one.point is FaultPoint.writing and one.kind is not FaultKind.sigkill:
            raise ConfigError(
                f"{key}.point=writing: in the middle of a write a command can only be killed (fault=sigkill), not "
                f"{one.kind}. Choose {key}.point=at_request."
            )


def plan_job_faults(fault: FaultConfig, facts: JobFacts) -> tuple[PlannedFault, ...]:
    """Return what fails, in order; each fault ends a start.

    Raises:
        ConfigError: A fault can never strike; names the key and what the reference has shown.
    """
    wanted = [_placed("fault", fault, facts, resumed=0)]
    for index, entry in enumerate(fault.more):
        further, resumed = fault.further(index, entry), _resumed(wanted[-1], facts)
        if _is_in_answer(wanted[-1].kind, further.point, further.step):
            wanted.append(further)
        else:
            wanted.append(_placed(f"fault.more[{index}]", further, facts, resumed=resumed))
    if not fault.more:
        again = _again(wanted[-1], facts)
        wanted += [again] if again is not None else []
    if wanted[0].point is FaultPoint.loading:
        # There is nothing to load before something was killed.
        kill = FaultConfig(kind=FaultKind.sigkill, step=_middle(facts, 0), seed=fault.seed)
        wanted = [_placed("fault", kill, facts, resumed=0), wanted[0]]
    return tuple(_planned(index, one, facts) for index, one in enumerate(wanted))


def _is_in_answer(before: FaultKind, point: FaultPoint | None, step: int | None) -> bool:
    """Whether a fault strikes the save, whichever that is, that a job answers the signal before it with."""
    in_save = (FaultPoint.at_request, FaultPoint.before_commit, FaultPoint.after_commit)
    return before in _ANSWERED and point in in_save and step is None


def armed_in_start(
    faults: Sequence[PlannedFault], fired: set[int], *, resumed: int, facts: JobFacts, may_move: bool
) -> list[PlannedFault]:
    """Return the faults that may strike in one start of the job: the next one, and what strikes in its answer to that.

    Args:
        faults: All that are planned.
        fired: Those that have struck.
        resumed: The step that the start is expected to go on from.
        facts: What the reference has shown.
        may_move: Whether nobody has asked for the steps of those after the first: a job that has saved after a signal
            may go on from a later step than it was planned for.
    """
    found = list(armed(faults, fired))
    if found and may_move and found[0].index and found[0].point not in _OF_SAVE:
        step = found[0].step
        if step is not None and step <= resumed < facts.steps:
            found[0] = replace(found[0], step=_middle(facts, resumed))
    after = next((fault for fault in faults if found and fault.index == found[-1].index + 1), None)
    if after is not None and _is_in_answer(found[-1].kind, after.point, after.step):
        found.append(after)
    return found


def _placed(key: str, fault: FaultConfig, facts: JobFacts, *, resumed: int) -> FaultConfig:
    point = fault.point or FaultPoint.after_optimizer
    step = fault.step
    if step is not None and step > facts.steps:
        raise ConfigError(f"{key}.step={step} is after the last step: the job takes {facts.steps} steps.")
    if point is FaultPoint.mid_accumulation and not facts.accumulates:
        raise ConfigError(f"{key}.point={point} never fires: each step of the job has one backward pass.")
    at = _steps_of(point, facts)
    if point in _OF_SAVE and not at:
        raise ConfigError(f"{key}.point={point} never fires: the job has {_DONE_AT[point]} nothing in {{run}}.")
    if point in _OF_SAVE and step is not None and step not in at:
        told = f"something is {_DONE_AT[point]} after" if point in _DONE_AT else "saved are"
        steps = ", ".join(map(str, at))
        raise ConfigError(f"{key}.step={step} with {key}.point={point} never fires: {told} the steps {steps}.")
    if step is None and point in _OF_SAVE:
        later = [save for save in at if save > resumed]
        # One that has a whole checkpoint before it.
        step = later[1] if len(later) > 1 and not resumed else later[0] if later else None
    elif step is None:
        step = _middle(facts, resumed)
    return _copied(fault, point, None if point is FaultPoint.loading else step)


def _steps_of(point: FaultPoint, facts: JobFacts) -> Sequence[int]:
    """The steps after which a point of a save is come by."""
    match point:
        case FaultPoint.before_commit | FaultPoint.after_commit:
            return facts.renames
        case FaultPoint.removing:
            return facts.removals
        case _:
            return facts.saves


def _copied(fault: FaultConfig, point: FaultPoint, step: int | None) -> FaultConfig:
    return FaultConfig(
        kind=fault.kind,
        point=point,
        step=step,
        rank=fault.rank,
        share=fault.share,
        seconds=fault.seconds,
        seed=fault.seed,
    )


def _middle(facts: JobFacts, resumed: int) -> int:
    """A step after the next save, and before the one after it."""
    later = [save for save in facts.saves if save > resumed]
    if not later or later[0] >= facts.steps:
        return min(facts.steps, max(resumed + 1, (resumed + facts.steps) // 2))
    until = later[1] if len(later) > 1 else facts.steps
    return later[0] + max(1, (until - later[0]) // 2)


def _resumed(fault: FaultConfig, facts: JobFacts) -> int:
    """What a job that saves now and then goes on from after ``fault``."""
    step = fault.step or 1
    return max(
        (save for save in facts.saves if save < step or (save == step and fault.point in _AFTER_SAVE)), default=0
    )


def _again(fault: FaultConfig, facts: JobFacts) -> FaultConfig | None:
    """The same once more, after a save of the start that has resumed; None where that has none before its end."""
    resumed = _resumed(fault, facts)
    point = fault.point or FaultPoint.after_optimizer
    if point is FaultPoint.loading:
        return None
    if point in _OF_SAVE:
        of_point = [step for step in _steps_of(point, facts) if step > resumed]
        return _copied(fault, point, of_point[1]) if len(of_point) > 1 else None
    later = [save for save in facts.saves if save > resumed]
    if not later or later[0] >= facts.steps:
        return None
    return _copied(fault, point, max(_middle(facts, resumed), fault.step or 1))


def _planned(index: int, fault: FaultConfig, facts: JobFacts) -> PlannedFault:
    ranks: tuple[int, ...]
    if fault.rank == ALL_RANKS:
        ranks = tuple(range(facts.ranks))
    elif fault.rank == ANY_RANK:
        # Those who save one file for all of them do so on rank 0.
        drawn = random.Random(f"rank/{fault.seed}/{index}").randrange(facts.ranks)
        ranks = (0 if fault.point in _OF_SAVE else drawn,)
    else:
        ranks = (int(fault.rank),)
        if ranks[0] >= facts.ranks:
            raise ConfigError(f"fault.rank={fault.rank}: the job has {facts.ranks} ranks, 0 to {facts.ranks - 1}.")
    return PlannedFault(
        index=index,
        kind=fault.kind,
        point=fault.point or FaultPoint.after_optimizer,
        step=fault.step,
        ranks=ranks,
        share=fault.share,
        seconds=fault.seconds,
        seed=fault.seed,
    )
