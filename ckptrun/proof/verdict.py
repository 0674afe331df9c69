"""The outcome of a proof, and its exit code. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

__all__ = ["Check", "Status", "Verdict", "verdict_of"]


class Status(StrEnum):
    """What a check or a whole proof came to."""

    equal = "equal"
    """Everything that was compared has the same bits."""
    different = "different"
    """Something has other bits."""
    not_verified = "not_verified"
    """Nothing could be compared; the reason says why."""


_EXIT_CODES = {Status.equal: 0, Status.different: 3, Status.not_verified: 4}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One named comparison."""

    name: str
    status: Status
    detail: str
    """What was covered (leaves, ranks, steps), or what differs."""
    first_difference: Mapping[str, Any] | None = None
    """step, rank, component, leaf, index, expected, got, ulp; what is unknown is None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All checks of a run and what they come to."""

    status: Status
    checks: Sequence[Check]
    first_difference: Mapping[str, Any] | None = None
    blame: str | None = None
    """The component at fault."""
    reason: str = field(default="")

    @property
    def exit_code(self) -> int:
        """0 equal, 3 different, 4 not verified."""
        return _EXIT_CODES[self.status]

    def as_json(self) -> dict[str, Any]:
        """The content of ``verdict.json``."""
        checks = [{"name": check.name, "status": check.status, "detail": check.detail} for check in self.checks]
        return {
            "verdict": self.status,
            "checks": checks,
            "first_difference": None if self.first_difference is None else dict(self.first_difference),
            "blame": self.blame,
            "reason": self.reason,
        }


def verdict_of(checks: Sequence[Check]) -> Verdict:
    """``different`` when one check is; ``not_verified`` when one could not be made or there is none; else ``equal``."""
    worst = [check for check in checks if check.status is Status.different]
    worst = worst or [check for check in checks if check.status is Status.not_verified]
    if not checks:
        return Verdict(status=Status.not_verified, checks=(), reason="nothing was checked")
    if not worst:
        return Verdict(status=Status.equal, checks=checks)
    first = worst[0].first_difference
    return Verdict(
        status=worst[0].status,
        checks=checks,
        first_difference=first,
        blame=None if first is None else first["component"],
        reason=f"{worst[0].name}: {worst[0].detail}",
    )
