"""Group ``fault``: the planned failures: what fails, at which point, step and rank, and how often."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum, StrEnum, auto
from typing import Any, assert_never

from ckptrun.config.ranges import at_least, between
from ckptrun.errors import ConfigError

__all__ = ["ALL_RANKS", "ANY_RANK", "FaultConfig", "FaultKind", "FaultPoint", "Reached", "no_point"]

ANY_RANK = "any"
ALL_RANKS = "all"


class FaultKind(StrEnum):
    """What fails; the names are those of the choices."""

    none = "none"
    sigkill = "sigkill"
    """The rank is killed, without a word."""
    sigterm = "sigterm"
    """The rank gets SIGTERM, as from a scheduler that preempts: the run saves at the next step boundary and ends."""
    sigint = "sigint"
    """The rank gets SIGINT, as from Ctrl-C."""
    exception = "exception"
    """The rank raises a RuntimeError."""
    oom = "oom"
    """The rank raises a MemoryError."""
    hang = "hang"
    """The rank stops where it is, and waits for ever."""
    sigstop = "sigstop"
    """The whole process of the rank is stopped, and does not answer any more."""
    exit = "exit"
    """The rank's process ends with code 1, without a word."""
    disk_full = "disk_full"
    """Writing fails: no space left on the device."""
    io_error = "io_error"
    """Writing fails: input/output error."""
    torn_write = "torn_write"
    """What the rank writes from there on never reaches the disk, and nobody is told."""
    bit_flip = "bit_flip"
    """One bit of what the rank writes is flipped on its way to the disk."""
    lost_file = "lost_file"
    """One file of the checkpoint is gone after its commit."""
    slow_storage = "slow_storage"
    """What the rank writes from there on takes ``fault.seconds`` longer per write."""
    chaos = "chaos"
    """Process faults of all kinds at all points, at steps drawn from the seed: for soak runs."""

    @property
    def is_storage(self) -> bool:
        """Whether it strikes what is written, not the process."""
        return self._effect is not _Effect.end

    @property
    def is_silent(self) -> bool:
        """Whether the run goes on as if nothing had happened."""
        return self._effect in (_Effect.damage, _Effect.delay)

    @property
    def damages(self) -> bool:
        """Whether it leaves a checkpoint that is not what was saved."""
        return self._effect is _Effect.damage

    @property
    def _effect(self) -> "_Effect":
        match self:
            case FaultKind.sigkill | FaultKind.sigterm | FaultKind.sigint | FaultKind.sigstop | FaultKind.exit:
                return _Effect.end
            case FaultKind.exception | FaultKind.oom | FaultKind.hang | FaultKind.chaos | FaultKind.none:
                return _Effect.end
            case FaultKind.disk_full | FaultKind.io_error:
                return _Effect.error
            case FaultKind.torn_write | FaultKind.bit_flip | FaultKind.lost_file:
                return _Effect.damage
            case FaultKind.slow_storage:
                return _Effect.delay
            case _:
                assert_never(self)


class _Effect(Enum):
    """What a fault does."""

    end = auto()
    """The process ends, sooner or later."""
    error = auto()
    """Writing fails, and says so."""
    damage = auto()
    """What is written is not what was saved, and nobody is told."""
    delay = auto()
    """Writing takes longer."""


class FaultPoint(StrEnum):
    """Where in a step or in a save; in the order in which a run comes by."""

    loading = "loading"
    """A checkpoint's tensors have been read, its components not yet filled."""
    before_step = "before_step"
    after_forward = "after_forward"
    mid_accumulation = "mid_accumulation"
    """Between two micro-batches of a step; needs ``train.accumulate`` of at least 2."""
    after_backward = "after_backward"
    """All gradients of the step are there, reduced over ranks."""
    after_optimizer = "after_optimizer"
    at_request = "at_request"
    """Digests are taken, nothing is copied."""
    staging = "staging"
    """Before the copy to host memory is complete; asynchronous saves only."""
    writing = "writing"
    """``fault.share`` of the rank's bytes are written."""
    before_commit = "before_commit"
    """All ranks have written; on rank 0."""
    after_commit = "after_commit"
    """The checkpoint is visible; on rank 0."""
    removing = "removing"
    """An older checkpoint is none any more, and not yet deleted; on rank 0; needs ``checkpoint.keep_last``."""

    @property
    def is_of_save(self) -> bool:
        """Whether a run comes by only when it saves; the fault's step is then the step that is saved."""
        return self._passage in (_Passage.save, _Passage.commit)

    @property
    def is_on_first_rank(self) -> bool:
        """Whether rank 0 alone comes by."""
        return self._passage is _Passage.commit

    @property
    def _passage(self) -> "_Passage":
        match self:
            case FaultPoint.before_step | FaultPoint.after_forward | FaultPoint.mid_accumulation:
                return _Passage.training
            case FaultPoint.after_backward | FaultPoint.after_optimizer | FaultPoint.loading:
                return _Passage.training
            case FaultPoint.at_request | FaultPoint.staging | FaultPoint.writing:
                return _Passage.save
            case FaultPoint.before_commit | FaultPoint.after_commit | FaultPoint.removing:
                return _Passage.commit
            case _:
                assert_never(self)


class _Passage(Enum):
    """When a run comes by a point."""

    training = auto()
    """Whether it saves or not."""
    save = auto()
    """On every rank that saves."""
    commit = auto()
    """On rank 0 alone, at the end of a save."""


Reached = Callable[[FaultPoint, int], None]
"""Told of each point that a run comes by, with the step (of a save: the one that is saved), in whatever thread or
process comes by. May not return."""


def no_point(point: FaultPoint, step: int) -> None:
    """A :data:`Reached` where nobody wants to know."""


_KEYS_OF_ONE_KIND = {"mean_steps": FaultKind.chaos, "seconds": FaultKind.slow_storage}
_NOT_OF_CHAOS = ("point", "step")
_MORE_KEYS = ("kind", "point", "step", "rank", "share")


@dataclass(kw_only=True, slots=True)
class FaultConfig:
    """What fails, at which point, step and rank. A fault fires at a place in the run, never after a time."""

    kind: FaultKind = FaultKind.none
    """Set by the choice: ``fault=sigkill``."""
    point: FaultPoint | None = None
    """Where; unset: ``after_optimizer``, for storage faults ``writing``."""
    step: int | None = None
    """At which step (1 is the first); for the points of a save: the step that is saved. Unset: one that has a
    checkpoint to go back to."""
    rank: int | str = ANY_RANK
    """Which rank: a number, ``all``, or ``any``: one that is drawn from ``fault.seed``."""
    share: float = 0.5
    """``writing``: after which share of the bytes that the rank writes."""
    seconds: float = 0.2
    """``slow_storage``: how much longer each write takes."""
    seed: int = 0
    """Decides the rank of ``rank=any``, the place of a flipped bit, and the faults of ``chaos``."""
    mean_steps: float = 10.0
    """``chaos``: mean number of steps from one failure to the next."""
    more: list[dict[str, Any]] = field(default_factory=list)
    """Further faults, in the order of the restarts that they cause: dicts of kind, point, step, rank, share, e.g.
    ``'fault.more=[{kind: exception, step: 40}]'``. Unset: a proof lets the same fault strike once more after the
    first resume."""

    def __post_init__(self) -> None:
        at_least("fault.step", self.step, 1)
        between("fault.seed", self.seed, 0, 2**63)
        at_least("fault.seconds", self.seconds, 0)
        at_least("fault.mean_steps", self.mean_steps, 1)
        _check_place("fault", self.kind, self.point, self.rank, self.share)
        if self.kind is FaultKind.none:
            _check_nothing_is_planned(self)
        if self.more and self.kind in (FaultKind.none, FaultKind.chaos):
            raise ConfigError(f"fault.more adds to a fault, but fault={self.kind}. Choose the first one with fault=...")
        for index, entry in enumerate(self.more):
            self.further(index, entry)

    def check_keys(self) -> None:
        """Refuse what only faults of another kind look at.

        Raises:
            ConfigError: Names the key and the kind that it is for.
        """
        kinds = {str(self.kind), *(str(entry.get("kind")) for entry in self.more)}
        defaults = {item.name: item.default for item in fields(self)}
        for name, kind in _KEYS_OF_ONE_KIND.items():
            value = getattr(self, name)
            if value != defaults[name] and kind not in kinds:
                raise ConfigError(f"fault.{name}={value} has no effect on fault={self.kind}. It is for fault={kind}.")
        for name in _NOT_OF_CHAOS:
            value = getattr(self, name)
            if self.kind is FaultKind.chaos and value != defaults[name]:
                raise ConfigError(
                    f"fault.{name}={value} has no effect on fault=chaos, which draws it. Leave it out, or choose one "
                    "kind of fault."
                )

    def further(self, index: int, entry: Mapping[str, Any]) -> "FaultConfig":
        """Return entry ``index`` of ``more`` as a config of its own.

        Raises:
            ConfigError: A key or a value of it is wrong; names both.
        """
        key = f"fault.more[{index}]"
        unknown = sorted(set(entry) - set(_MORE_KEYS))
        if unknown or "kind" not in entry:
            problem = f"has no key {unknown[0]!r}" if unknown else "needs a kind"
            raise ConfigError(f"{key} {problem}; keys: {', '.join(_MORE_KEYS)}.")
        step, rank, share = entry.get("step"), entry.get("rank", ANY_RANK), entry.get("share", self.share)
        kind = _member(FaultKind, entry["kind"], f"{key}.kind")
        point = None if entry.get("point") is None else _member(FaultPoint, entry["point"], f"{key}.point")
        is_step = step is None or (type(step) is int and step >= 1)
        if kind in (FaultKind.none, FaultKind.chaos) or not is_step:
            raise ConfigError(f"{key} must be a single fault at a step of at least 1, got {dict(entry)}.")
        _check_place(key, kind, point, rank, share)
        return FaultConfig(
            kind=kind, point=point, step=step, rank=rank, share=share, seconds=self.seconds, seed=self.seed
        )


def _member(choices: Any, name: Any, key: str) -> Any:
    try:
        return choices(str(name))
    except ValueError:
        raise ConfigError(f"{key}={name!r} is none of: {', '.join(choices)}.") from None


def _check_nothing_is_planned(config: FaultConfig) -> None:
    """Without a fault no key of the group does anything: whoever sets one has forgotten to choose the fault."""
    for item in fields(config):
        default = [] if item.name == "more" else item.default
        value = getattr(config, item.name)
        if item.name != "kind" and value != default:
            shown = str(value) if isinstance(value, str | int | float) else f"{value!r}"
            raise ConfigError(
                f"fault.{item.name}={shown} has no effect, because no fault is chosen. Choose one, e.g. fault=sigkill."
            )


def _check_place(key: str, kind: FaultKind, point: FaultPoint | None, rank: int | str, share: float) -> None:
    if not (type(rank) is int and rank >= 0) and rank not in (ANY_RANK, ALL_RANKS):
        raise ConfigError(f"{key}.rank must be a rank, 'all' or 'any', got {rank!r}.")
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ConfigError(f"{key}.share must be at least 0 and at most 1, got {share!r}.")
    if kind.is_storage and point not in (None, FaultPoint.writing):
        raise ConfigError(
            f"{key}.point={point} has no meaning for {key}.kind={kind}: storage fails while it is written to. "
            f"Leave {key}.point out, or use {key}.point=writing."
        )
    if point is not None and point.is_on_first_rank and rank not in (0, ANY_RANK, ALL_RANKS):
        raise ConfigError(f"{key}.point={point} is reached on rank 0 alone; use {key}.rank=0, got {rank}.")
