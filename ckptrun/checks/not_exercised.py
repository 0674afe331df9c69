"""What did not occur in a proof, and so was not looked at: a sentence each, from what the run has left. Torch-free.

None of it is a fault of the run: a proof of twelve steps has no epoch end in it. It says how far ``equal`` goes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptrun.config.fault import FaultPoint
from ckptrun.config.precision import PrecisionConfig, PrecisionKind
from ckptrun.evidence.mismatch import LedgerLine
from ckptrun.evidence.starts import Start
from ckptrun.fault import Fired

__all__ = ["Occurred", "not_exercised"]

Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Occurred:
    """The facts."""

    steps: int
    """Of the run."""
    precision: PrecisionConfig | None
    """What it computes with, where that is known."""
    keep_last: int | None
    """How many checkpoints it leaves; None: all."""
    has_controls: bool
    lines: Sequence[LedgerLine]
    """The ledger of the reference on rank 0."""
    starts: Sequence[Start]
    fired: Sequence[Fired]
    removed: int
    """Checkpoints of the run that ``keep_last`` has removed."""
    at_resume: Values
    """Plain leaves of the checkpoint of the first resume, name -> value; empty where there is none any more."""
    at_end: Values
    """Those of the last checkpoint of the run."""

    @property
    def resumes(self) -> list[Start]:
        """Starts that have loaded something."""
        return [start for start in self.starts if start.resumed_from is not None]

    @property
    def resumed_at(self) -> int:
        """The step of the first resume; without one, the last."""
        return self.resumes[0].step if self.resumes else self.steps


def not_exercised(occurred: Occurred) -> list[str]:
    """Return what did not occur, most telling first."""
    parts = (_restarts, _failures, _epochs, _rates, _scaler, _gradients, _removal, _controls)
    return [sentence for part in parts for sentence in part(occurred)]


def _restarts(occurred: Occurred) -> Iterator[str]:
    resumes, steps = occurred.resumes, occurred.steps
    if len(resumes) < 2:
        yield "second restart: the run was resumed once" if resumes else "restart: the run was never resumed"
    elif all(start.step >= steps for start in resumes[1:]):
        yield f"steps after a second restart: it loaded the end (step {resumes[1].step}) and took none"
    seeds = {start.hash_seed for start in occurred.starts}
    if resumes and not any(start.fresh and start.step < steps for start in resumes):
        yield "steps after a resume in another interpreter"
    elif resumes and len(seeds) == 1 and seeds != {None}:
        yield f"another hash seed: PYTHONHASHSEED={seeds.pop()} was set for every start"


def _failures(occurred: Occurred) -> Iterator[str]:
    if not occurred.fired:
        yield "a kill: every start ended by itself"
    elif not any(FaultPoint(fault.point).is_of_save for fault in occurred.fired):
        yield "a failure during a save: " + ", ".join(sorted({fault.point for fault in occurred.fired})) + " only"


def _epochs(occurred: Occurred) -> Iterator[str]:
    end, length = occurred.at_end, occurred.at_end.get("data.length")
    if isinstance(length, int) and length > 0:
        taken = end["data.epoch"] * length + end["data.samples"]
        steps = end["progress.step"]
        # The last sample taken lies in the epoch that counts: an epoch that just ended has no successor yet.
        ended = max(0, taken - 1) // length
        before = taken * occurred.resumed_at // steps // length if steps else 0
        epoch = f"an epoch has {length} samples, and {taken} were taken"
    elif end.get("data.kind") == "iterable":
        name = next((name for name in end if name.startswith("data.ranks.") and name.endswith(".epoch")), "")
        ended, before = end.get(name, 0), occurred.at_resume.get(name, 0)
        epoch = f"{end.get('data.samples')} samples were taken"
    else:
        return
    if not ended:
        yield f"epoch end: {epoch}"
    elif ended <= before:
        yield f"epoch end after a resume: none after step {occurred.resumed_at} ({epoch})"


def _rates(occurred: Occurred) -> Iterator[str]:
    rates = [(line["step"], line["learning_rate"]) for line in occurred.lines]
    later = {rate for step, rate in rates if step > occurred.resumed_at}
    if len({rate for _, rate in rates}) == 1:
        yield f"schedule change: the learning rate was {float.fromhex(rates[0][1]):g} at every step"
    elif len(later) == 1:
        yield f"schedule change after a resume: none after step {occurred.resumed_at}"


def _scaler(occurred: Occurred) -> Iterator[str]:
    precision, resumed_at = occurred.precision, occurred.resumed_at
    if precision is None or precision.kind is not PrecisionKind.fp16:
        return
    skipped = [line["step"] for line in occurred.lines if line["skipped"]]
    if not skipped:
        yield "scaler backoff: no step overflowed"
    elif skipped[-1] <= resumed_at:
        yield f"scaler backoff after a resume: none after step {resumed_at}"
    grown = _growths(precision.initial_scale, occurred.at_end, len(skipped))
    then = _growths(precision.initial_scale, occurred.at_resume, sum(step <= resumed_at for step in skipped))
    if not grown:
        interval = precision.growth_interval
        yield f"scaler growth: none in {len(occurred.lines)} steps (precision.growth_interval={interval})"
    elif then is not None and grown <= then:
        yield f"scaler growth after a resume: none after step {resumed_at}"


def _growths(initial_scale: float, values: Values, backoffs: int) -> int | None:
    """How often the scale was doubled, if it was halved ``backoffs`` times."""
    scale = values.get("scaler.scale")
    return None if not scale else round(math.log2(scale / initial_scale)) + backoffs


def _gradients(occurred: Occurred) -> Iterator[str]:
    moving = [line["step"] for line in occurred.lines if float.fromhex(line["gradient_norm"]) != 0.0]
    last = moving[-1] if moving else 0
    if occurred.lines and last < occurred.lines[-1]["step"]:
        yield f"gradients: all were 0 from step {last + 1} on"


def _removal(occurred: Occurred) -> Iterator[str]:
    keep_last = occurred.keep_last
    if keep_last is not None and not occurred.removed:
        yield f"removal of old checkpoints: checkpoint.keep_last={keep_last} kept all"


def _controls(occurred: Occurred) -> Iterator[str]:
    if not occurred.has_controls:
        yield "controls: whether a component left out would be noticed (proof.controls=none)"
