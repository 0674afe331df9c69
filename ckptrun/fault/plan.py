"""From ``fault=...`` to a list of faults, each with its place: (point, step, ranks). Pure, and torch-free.

The list is in the order of the restarts that the faults cause. At each start the first fault that has not fired yet is
armed, and with it what comes after it as long as the run goes on by itself (see ``armed``).

Where the config leaves a step open, it is one that has a checkpoint to go back to. A kill is added where a fault needs
one: before ``loading``, and after a silent fault of the storage, so that its checkpoint is looked at. In a proof the
first fault strikes once more after the resume, so that the checkpoint taken right after a resume is resumed from too.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from ckptrun.config.checkpoint import SaveMode
from ckptrun.config.fault import ALL_RANKS, ANY_RANK, FaultConfig, FaultKind, FaultPoint
from ckptrun.config.parallelism import resolve_mesh
from ckptrun.config.run import RunConfig
from ckptrun.errors import ConfigError

__all__ = ["PlannedFault", "armed", "plan_faults", "stop_steps"]

_LOOP_POINTS = (
    FaultPoint.before_step,
    FaultPoint.after_forward,
    FaultPoint.after_backward,
    FaultPoint.after_optimizer,
)
_SAVE_POINTS = tuple(point for point in FaultPoint if point.is_of_save)
_CHAOS_KINDS = (FaultKind.sigkill, FaultKind.exception, FaultKind.oom, FaultKind.exit, FaultKind.sigterm)
_CHAOS_SAVE_POINTS = (FaultPoint.at_request, FaultPoint.writing)
_SHARE_OF_SAVES = 0.25
_SAVES_FOR_DAMAGE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedFault:
    """One fault and its place. Fires once on each of ``ranks``, over all restarts."""

    index: int
    kind: FaultKind
    point: FaultPoint
    step: int | None
    """None: at any step (``loading``)."""
    ranks: tuple[int, ...]
    share: float
    seconds: float
    seed: int

    def __str__(self) -> str:
        where = "" if self.step is None else f" of step {self.step}"
        who = "all ranks" if len(self.ranks) > 1 else f"rank {self.ranks[0]}"
        return f"{self.kind} at {self.point}{where} on {who}"


@dataclass(frozen=True, slots=True)
class _Saves:
    """When a run saves, as far as its interval says."""

    steps: tuple[int, ...]
    last: int

    @classmethod
    def of(cls, config: RunConfig) -> "_Saves":
        last, interval = config.train.steps, config.checkpoint.interval_steps
        if config.checkpoint.mode is SaveMode.none:
            return cls((), last)
        return cls(tuple(sorted({*range(interval, last + 1, interval), last})), last)

    def before(self, step: int) -> int:
        """The newest step before ``step`` that is saved; 0 for none."""
        return max((save for save in self.steps if save < step), default=0)

    def after(self, step: int) -> int:
        """The first step after ``step`` that is saved; the last step for none."""
        return min((save for save in self.steps if save > step), default=self.last)

    def middle(self) -> int:
        """A step with a checkpoint behind it, and steps of the same interval before it."""
        first = self.steps[0] if self.steps else self.last
        if first >= self.last:
            return (self.last + 1) // 2
        return first + max(1, (self.after(first) - first) // 2)


@dataclass(frozen=True, slots=True)
class _World:
    """The ranks that a fault strikes among."""

    size: int
    passes: int
    """Forward and backward passes per step."""

    @classmethod
    def of(cls, config: RunConfig, size: int) -> "_World":
        if config.train.global_batch is None:
            return cls(size, config.train.accumulate)
        return cls(size, config.train.accumulation(resolve_mesh(config.parallelism, size).data_parallel))


def plan_faults(
    config: RunConfig, *, world_size: int, in_proof: bool, after: RunConfig | None = None
) -> tuple[PlannedFault, ...]:
    """Return the faults of ``config``; none for ``fault=none``.

    Args:
        config: The checked config.
        world_size: How many ranks the run has where the faults strike.
        in_proof: Whether ckptrun restarts the run itself; then the first fault strikes once more after the resume.
        after: The config of the run once it was resumed; None: the same.

    Raises:
        ConfigError: A fault can never fire as planned; names the key and the way out.
    """
    first = config.fault
    if first.kind is FaultKind.none:
        return ()
    saves = _Saves.of(config)
    worlds = (_World.of(config, world_size), _World.of(after, after.ranks) if after else _World.of(config, world_size))
    wanted: list[FaultConfig]
    if first.kind is FaultKind.chaos:
        wanted = _chaos(first, saves, passes=min(world.passes for world in worlds))
        if not wanted:
            raise ConfigError(
                f"fault=chaos draws no failure in train.steps={saves.last} with fault.mean_steps={first.mean_steps:g}, "
                f"fault.seed={first.seed}: nothing would be proved. Raise train.steps, or lower fault.mean_steps."
            )
    else:
        named = [("fault", first), *((f"fault.more[{i}]", first.further(i, e)) for i, e in enumerate(first.more))]
        wanted = []
        for key, fault in named:
            placed = _placed(key, fault, saves, config)
            if fault.step is None and placed.step is not None and wanted:
                # Past the checkpoint that the run goes on from by then.
                resumed = _resumed(wanted[-1], saves)
                later = saves.after(resumed) if placed.point in _SAVE_POINTS else _step_after(placed, resumed, saves)
                placed = replace(placed, step=max(placed.step, later))
            wanted.append(placed)
        wanted = _with_kills(wanted, saves, repeat=in_proof and not first.more)
    return _in_worlds(wanted, worlds)


def stop_steps(config: RunConfig) -> list[int]:
    """After which steps the starts of ``proof=full`` end, so that fresh processes go on."""
    middle = _Saves.of(config).middle()
    return [middle, min(config.train.steps, middle + 2)]


def armed(faults: Sequence[PlannedFault], fired: set[int]) -> list[PlannedFault]:
    """The faults that may fire in a start: the first that has not fired, and on to the first that ends the run."""
    found: list[PlannedFault] = []
    for fault in faults:
        if fault.index in fired:
            continue
        found.append(fault)
        if not fault.kind.is_silent:
            break
    return found


def _placed(key: str, fault: FaultConfig, saves: _Saves, config: RunConfig) -> FaultConfig:
    """``fault`` with its point and step, checked against what the run comes by."""
    point = fault.point or (FaultPoint.writing if fault.kind.is_storage else FaultPoint.after_optimizer)
    _check_point(f"{key}.point={point}", point, saves, config)
    step = fault.step
    if step is None:
        step = _default_step(fault.kind, point, saves, config)
    elif point.is_of_save and key == "fault" and step not in saves.steps:
        steps = ", ".join(map(str, saves.steps))
        raise ConfigError(
            f"{key}.step={step} with {key}.point={point} never fires: step {step} is not saved (saved are: {steps}). "
            f"Use one of these, or change checkpoint.interval_steps."
        )
    elif step > saves.last:
        raise ConfigError(f"{key}.step={step} is after the last step, train.steps={saves.last}.")
    return replace(fault, point=point, step=None if point is FaultPoint.loading else step, more=[])


def _check_point(place: str, point: FaultPoint, saves: _Saves, config: RunConfig) -> None:
    if point.is_of_save and not saves.steps:
        raise ConfigError(f"{place} never fires with checkpoint=none. Choose checkpoint=sync or async.")
    if point is FaultPoint.staging and config.checkpoint.mode is SaveMode.sync:
        raise ConfigError(
            f"{place} never fires with checkpoint=sync, which stages nothing. Choose checkpoint=async or async_process."
        )
    if point is FaultPoint.removing and config.checkpoint.keep_last is None:
        raise ConfigError(f"{place} never fires, because nothing is removed; set checkpoint.keep_last, e.g. to 1.")


def _default_step(kind: FaultKind, point: FaultPoint, saves: _Saves, config: RunConfig) -> int | None:
    if point is FaultPoint.loading:
        return None
    if not point.is_of_save:
        return saves.middle()
    if kind.is_silent:
        # One checkpoint that is whole to fall back to, and a step after the damaged one in which to be killed.
        if len(saves.steps) <= _SAVES_FOR_DAMAGE:
            raise ConfigError(
                f"fault={kind} needs two checkpoints before the last step, one of them to fall back to, but saved are "
                f"only the steps {', '.join(map(str, saves.steps))}. Lower checkpoint.interval_steps."
            )
        return saves.steps[1]
    keep = config.checkpoint.keep_last
    place = keep if point is FaultPoint.removing and keep is not None else 1
    if place >= len(saves.steps):
        if point is FaultPoint.removing:
            raise ConfigError(
                f"fault.point=removing never fires: with checkpoint.keep_last={keep} and {len(saves.steps)} saves "
                "nothing is removed. Lower checkpoint.keep_last or checkpoint.interval_steps."
            )
        place = 0
    return saves.steps[place]


def _with_kills(wanted: list[FaultConfig], saves: _Saves, *, repeat: bool) -> list[FaultConfig]:
    """Add a kill where a fault needs one, and with ``repeat`` the first fault a second time."""
    first = wanted[0]
    kill = FaultConfig(kind=FaultKind.sigkill, point=FaultPoint.after_optimizer, step=saves.middle(), seed=first.seed)
    if first.point is FaultPoint.loading:
        again = [replace(kill, step=_second_step(kill, saves))] if repeat else []
        return [kill, *wanted, *again]
    if first.kind.is_silent:
        step = first.step or 1
        later = replace(kill, step=min(saves.last, step + max(1, (saves.after(step) - step) // 2)))
        return [first, *([later, later] if repeat else [later] if len(wanted) == 1 else wanted[1:])]
    return [*wanted, replace(first, step=_second_step(first, saves))] if repeat else wanted


def _second_step(fault: FaultConfig, saves: _Saves) -> int:
    """Where the same fault strikes again."""
    return _step_after(fault, _resumed(fault, saves), saves)


def _step_after(fault: FaultConfig, resumed: int, saves: _Saves) -> int:
    """The step of ``fault``, or a later one, in a run that goes on from ``resumed`` and has saved one step after it."""
    step, point = fault.step or 1, fault.point or FaultPoint.after_optimizer
    if point.is_of_save:
        return step if step > resumed else min(saves.last, resumed + 1)
    return min(saves.last, max(step, resumed + 2))


def _resumed(fault: FaultConfig, saves: _Saves) -> int:
    """The step that the run goes on from after ``fault``."""
    step, point = fault.step or 1, fault.point or FaultPoint.after_optimizer
    if fault.kind is FaultKind.sigterm:
        return step + 1 if point.is_of_save else step
    return step if point in (FaultPoint.after_commit, FaultPoint.removing) else saves.before(step)


def _chaos(fault: FaultConfig, saves: _Saves, *, passes: int) -> list[FaultConfig]:
    draw = random.Random(f"chaos/{fault.seed}")  # repeatable on purpose
    found: list[FaultConfig] = []
    points = [*_LOOP_POINTS, *([FaultPoint.mid_accumulation] if passes > 1 else [])]
    clock, last = 0, 0
    while True:
        # The clock keeps the mean: a fault that waits for the next save does not put off those after it.
        clock += max(1, round(draw.expovariate(1.0 / fault.mean_steps)))
        step = max(clock, last + 1)
        if step >= saves.last:
            return found
        kind, point, save = draw.choice(_CHAOS_KINDS), draw.choice(points), saves.after(step - 1)
        if saves.steps and save < saves.last and draw.random() < _SHARE_OF_SAVES:
            kind, point, step = FaultKind.sigkill, draw.choice(_CHAOS_SAVE_POINTS), save
        last = step
        found.append(replace(fault, kind=kind, point=point, step=step, more=[]))


def _in_worlds(wanted: Sequence[FaultConfig], worlds: tuple[_World, _World]) -> tuple[PlannedFault, ...]:
    """Place ``wanted`` among the ranks of the first start, and of those after it."""
    found, world = [], worlds[0]
    for index, fault in enumerate(wanted):
        found.append(_planned(index, fault, world))
        if not fault.kind.is_silent:
            world = worlds[1]
    return tuple(found)


def _planned(index: int, fault: FaultConfig, world: _World) -> PlannedFault:
    point = fault.point or FaultPoint.after_optimizer
    if point is FaultPoint.mid_accumulation and world.passes < 2:  # between two
        raise ConfigError(
            f"fault.point={point} never fires: on {world.size} ranks a step is one pass over one micro-batch. Set "
            "train.accumulate to 2 or more, or train.global_batch to several times what all ranks take in one pass."
        )
    if fault.kind is FaultKind.lost_file:
        # There is no file to lose before it counts.
        point = FaultPoint.after_commit
    return PlannedFault(
        index=index,
        kind=fault.kind,
        point=point,
        step=fault.step,
        ranks=_ranks(index, fault, point, world.size),
        share=fault.share,
        seconds=fault.seconds,
        seed=fault.seed,
    )


def _ranks(index: int, fault: FaultConfig, point: FaultPoint, world_size: int) -> tuple[int, ...]:
    if point.is_on_first_rank:
        return (0,)
    if fault.rank == ALL_RANKS:
        return tuple(range(world_size))
    if fault.rank == ANY_RANK:
        return (random.Random(f"rank/{fault.seed}/{index}").randrange(world_size),)
    rank = int(fault.rank)
    if rank >= world_size:
        raise ConfigError(f"fault.rank={rank}: there are only {world_size} ranks, 0 to {world_size - 1}.")
    return (rank,)
