"""Group ``precision``: in which dtype forward and backward compute. Parameters and moments are fp32 always."""

from dataclasses import dataclass
from enum import StrEnum

from ckptrun.config.ranges import at_least

__all__ = ["PrecisionConfig", "PrecisionKind"]


class PrecisionKind(StrEnum):
    """The dtype of forward and backward; the names are those of the choices."""

    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


@dataclass(kw_only=True, slots=True)
class PrecisionConfig:
    """The dtype, and the loss scale that fp16 needs."""

    kind: PrecisionKind = PrecisionKind.fp32
    """Set by the choice: ``precision=bf16``."""
    initial_scale: float = 65536.0
    """fp16 only: the loss scale of the first step."""
    growth_interval: int = 2000
    """fp16 only: the scale doubles after this many steps in a row without an overflow."""

    def __post_init__(self) -> None:
        at_least("precision.initial_scale", self.initial_scale, 1)
        at_least("precision.growth_interval", self.growth_interval, 1)
