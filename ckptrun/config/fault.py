"""Group ``fault``: the planned failure. Only ``none`` exists so far."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["FaultConfig", "FaultKind"]


class FaultKind(StrEnum):
    """What fails; the names are those of the choices."""

    none = "none"


@dataclass(kw_only=True, slots=True)
class FaultConfig:
    """What fails, at which point, step and rank."""

    kind: FaultKind = FaultKind.none
    """Set by the choice: ``fault=none``."""
