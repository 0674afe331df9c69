"""Whether the planned faults have struck: a proof in which nothing failed proves nothing."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from ckptrun.evidence.verdict import Check, Status

__all__ = ["check_faults"]


class _Numbered(Protocol):
    """A planned fault, or one that has struck; ``str()`` says which."""

    @property
    def index(self) -> int:
        """Its place in the plan."""


def check_faults(planned: Sequence[_Numbered], fired: Iterable[_Numbered]) -> Check:
    """Hold what has struck against the plan."""
    struck = {fault.index: str(fault) for fault in fired}
    missing = [str(fault) for fault in planned if fault.index not in struck]
    if missing:
        return Check(
            name="faults",
            status=Status.not_verified,
            detail=f"did not fire: {'; '.join(missing)}. The run does not come by there; choose another point or step.",
            covered={"faults": len(struck)},
        )
    detail = f"fired as planned: {'; '.join(struck[fault.index] for fault in planned)}"
    return Check(name="faults", status=Status.equal, detail=detail, covered={"faults": len(planned)})
