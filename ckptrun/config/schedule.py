"""Group ``schedule``: how the learning rate changes from step to step."""

from dataclasses import dataclass, field

from ckptrun.config.custom import Custom
from ckptrun.config.ranges import at_least, between
from ckptrun.errors import ConfigError

__all__ = [
    "ConstantConfig",
    "CosineConfig",
    "CustomScheduleConfig",
    "MultiStepConfig",
    "ScheduleConfig",
    "WSDConfig",
]


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """What every schedule has."""


@dataclass(kw_only=True, slots=True)
class ConstantConfig(ScheduleConfig):
    """The peak learning rate at every step."""


@dataclass(kw_only=True, slots=True)
class CosineConfig(ScheduleConfig):
    """Linear warm-up, then half a cosine down to ``final_share`` of the peak at the last step."""

    warmup_steps: int = 5
    """Steps of linear warm-up."""
    final_share: float = 0.1
    """Learning rate at the end, as a share of the peak."""

    def __post_init__(self) -> None:
        at_least("schedule.warmup_steps", self.warmup_steps, 0)
        between("schedule.final_share", self.final_share, 0.0, 1.0 + 1e-12)


@dataclass(kw_only=True, slots=True)
class MultiStepConfig(ScheduleConfig):
    """The learning rate is multiplied by ``factor`` at each milestone."""

    milestones: list[int] = field(default_factory=lambda: [30, 45])
    """Steps at which the learning rate changes, ascending."""
    factor: float = 0.5
    """What it is multiplied with."""

    def __post_init__(self) -> None:
        at_least("schedule.factor", self.factor, 0)
        for step in self.milestones:
            at_least("schedule.milestones", step, 1)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ConfigError(f"schedule.milestones must ascend, got {list(self.milestones)}.")


@dataclass(kw_only=True, slots=True)
class WSDConfig(ScheduleConfig):
    """Warm-up, stable, decay: linear up, constant, linear down to ``final_share`` over the last steps."""

    warmup_steps: int = 5
    """Steps of linear warm-up."""
    decay_steps: int = 10
    """Steps of linear decay at the end."""
    final_share: float = 0.0
    """Learning rate at the end, as a share of the peak."""

    def __post_init__(self) -> None:
        at_least("schedule.warmup_steps", self.warmup_steps, 0)
        at_least("schedule.decay_steps", self.decay_steps, 0)
        between("schedule.final_share", self.final_share, 0.0, 1.0 + 1e-12)


@dataclass(kw_only=True, slots=True)
class CustomScheduleConfig(ScheduleConfig, Custom):
    """A scheduler of the user's own, called as ``target(optimizer, **args)``.

    It has ``step()``, ``state_dict()`` and ``load_state_dict(state)``.
    """
