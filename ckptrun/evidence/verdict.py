"""The outcome of a proof, and its exit code. Torch-free."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ckptrun.evidence.advice import advice
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.run_folder import VERDICT
from ckptrun.exit_codes import ExitCode
from ckptrun.files import write_json

__all__ = ["Check", "Status", "Verdict", "read_verdict", "verdict_of", "write_verdict"]


class Status(StrEnum):
    """What a check or a whole proof came to."""

    equal = "equal"
    """Everything that was compared has the same bits."""
    different = "different"
    """Something has other bits."""
    not_verified = "not_verified"
    """Nothing could be compared; the reason says why."""


_EXIT_CODES = {
    Status.equal: ExitCode.done,
    Status.different: ExitCode.different,
    Status.not_verified: ExitCode.not_verified,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One named comparison."""

    name: str
    status: Status
    detail: str
    """What was covered (leaves, ranks, steps), or what differs."""
    first_difference: Difference | None = None
    covered: Mapping[str, int] = field(default_factory=dict)
    """What was compared, counted: ``leaves``, ``ranks``, ``steps``, ``bytes``, ``checkpoints``, ..."""
    is_needed: bool = True
    """Whether a proof without it proves too little. A check that was switched off, or that has nothing to look at in
    this run, is not needed: it stays ``not_verified`` and does not decide."""
    blame: str | None = None
    """The component at fault, where it is another than that of the first difference, or there is none."""
    start: int | None = None
    """In which start of the run it was found, counted from 0; None where no single one is known."""

    def as_json(self) -> dict[str, Any]:
        """As it stands in ``verdict.json`` and in ``events.jsonl``."""
        return {
            "name": self.name,
            "status": self.status,
            "detail": self.detail,
            "covered": dict(self.covered),
            "first_difference": _as_json(self.first_difference),
            "is_needed": self.is_needed,
            "blame": self.blame,
            "start": self.start,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Check":
        """Undo :meth:`as_json`."""
        first = _from_json(content.get("first_difference"))
        return cls(**{**content, "status": Status(content["status"]), "first_difference": first})


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """All checks of a run and what they come to."""

    status: Status
    checks: Sequence[Check]
    first_difference: Difference | None = None
    blame: str | None = None
    """The component at fault."""
    reason: str = field(default="")
    advice: str = ""
    """What usually causes it, and where to look; empty where everything is equal or nothing useful is known."""
    path: str | None = None
    """The run folder."""
    not_exercised: Sequence[str] = ()
    """What did not occur in this proof, and so was not looked at: a sentence each."""
    not_covered: Sequence[str] = ()
    """What occurred and was left out of the comparisons: a sentence each."""

    @property
    def exit_code(self) -> ExitCode:
        """What a command says with it: 0 equal, 3 different, 4 not verified."""
        return _EXIT_CODES[self.status]

    def as_json(self) -> dict[str, Any]:
        """The content of ``verdict.json``."""
        return {
            "verdict": self.status,
            "checks": [check.as_json() for check in self.checks],
            "first_difference": _as_json(self.first_difference),
            "blame": self.blame,
            "reason": self.reason,
            "advice": self.advice,
            "not_exercised": list(self.not_exercised),
            "not_covered": list(self.not_covered),
        }


def _as_json(first: Difference | None) -> dict[str, Any] | None:
    return None if first is None else first.as_json()


def _from_json(content: Mapping[str, Any] | None) -> Difference | None:
    return None if content is None else Difference.from_json(content)


def write_verdict(verdict: Verdict, run_dir: Path, **more: Any) -> None:
    """Write ``verdict.json`` into ``run_dir``; ``more`` is for people and reports, and not read again."""
    write_json(run_dir / VERDICT, verdict.as_json() | more)


def read_verdict(run_dir: Path) -> Verdict:
    """Undo :func:`write_verdict`."""
    content = json.loads((run_dir / VERDICT).read_text())
    return Verdict(
        status=Status(content["verdict"]),
        checks=[Check.from_json(check) for check in content["checks"]],
        first_difference=_from_json(content["first_difference"]),
        blame=content["blame"],
        reason=content["reason"],
        path=str(run_dir),
        # A version before these were told has left none.
        advice=content.get("advice", ""),
        not_exercised=tuple(content.get("not_exercised", ())),
        not_covered=tuple(content.get("not_covered", ())),
    )


def verdict_of(checks: Sequence[Check], *, moment_of: Callable[[Check], Any] = lambda _: 0) -> Verdict:
    """``different`` when one check is; ``not_verified`` when a needed one could not be made; else ``equal``.

    Args:
        checks: All of them.
        moment_of: When what a check has found came to be: of several differences the earliest is the cause. Unset, and
            at one moment, it is the first in ``checks``.
    """
    worst = sorted((check for check in checks if check.status is Status.different), key=moment_of)
    worst = worst or [check for check in checks if check.status is Status.not_verified and check.is_needed]
    if not any(check.is_needed for check in checks):
        return Verdict(status=Status.not_verified, checks=(), reason="nothing was checked")
    if not worst:
        return Verdict(status=Status.equal, checks=checks)
    first, is_different = worst[0].first_difference, worst[0].status is Status.different
    blame = worst[0].blame or (first.component if first is not None and is_different else None)
    return Verdict(
        status=worst[0].status,
        checks=checks,
        first_difference=first,
        blame=blame,
        reason=f"{worst[0].name}: {worst[0].detail}",
        advice=advice(worst[0].name, worst[0].detail, blame=blame, first=first),
    )
