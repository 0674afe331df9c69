"""A trajectory of NaN repeats whatever was lost: from where on it proves nothing. Torch-free."""

import math
from collections.abc import Sequence

from ckptrun.evidence.mismatch import LedgerLine
from ckptrun.evidence.verdict import Check, Status

__all__ = ["check_finite"]


def check_finite(lines: Sequence[LedgerLine]) -> list[Check]:
    """Return ``finite``, not verified, if the run ends in steps that tell nothing; nothing if it does not.

    Such a step has a loss that is NaN or infinite, or was taken with a gradient that is NaN, as then weights are. Steps
    in the middle that tell nothing are no matter: what comes after them tells. Nor is a last step that the loss scaler
    has left out, which leaves the weights as they were.

    Args:
        lines: Of the ledger of the reference, on one rank: the numbers are those of all ranks together.
    """
    void: list[LedgerLine] = []
    for line in reversed(lines):
        if not _is_void(line):
            break
        void.insert(0, line)
    if not void or (len(void) == 1 and void[0]["skipped"]):
        return []
    first, last = void[0], lines[-1]
    numbers = {field: _number(first, field) for field in ("loss", "gradient_norm")}
    what = ", ".join(f"{field.replace('_', ' ')} {n:.6g}" for field, n in numbers.items() if n is not None)
    steps = f"step {first['step']}" if first is last else f"steps {first['step']} to {last['step']}"
    detail = (
        f"from step {first['step']} on ({what}) every step looks the same, whatever was lost: {steps} prove nothing. "
        "Make the job train (a smaller optimizer.lr, train.clip_norm, other data), or end it before that step "
        "(train.steps)"
    )
    return [Check(name="finite", status=Status.not_verified, detail=detail, covered={"steps": len(lines) - len(void)})]


def _is_void(line: LedgerLine) -> bool:
    loss, norm = _number(line, "loss"), _number(line, "gradient_norm")
    is_lost = norm is not None and math.isnan(norm) and not line["skipped"]
    return (loss is not None and not math.isfinite(loss)) or is_lost


def _number(line: LedgerLine, field: str) -> float | None:
    """A number of a step; None of a job that has none, or more than one."""
    return None if line[field] is None else float.fromhex(line[field])
