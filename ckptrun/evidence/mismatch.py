"""The first thing that two lines of two ledgers do not agree on. Torch-free."""

import contextlib
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptrun.evidence.difference import Difference, component_of
from ckptrun.files import with_bits

__all__ = ["LedgerLine", "Mismatch", "compare_lines"]

LedgerLine = Mapping[str, Any]
"""What a rank did at one step; see ``ledger``."""

# What decides a step comes before what it comes to: the first that differs is nearest to the cause.
_COMPONENT_OF = {"batch": "data", "learning_rate": "schedule", "skipped": "scaler", "loss": None, "gradient_norm": None}
_FLOATS = ("learning_rate", "loss", "gradient_norm")
_RNG = "rng."


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """The first thing that two ledgers do not agree on, on one rank."""

    step: int
    rank: int
    field: str
    """``loss``, ``gradient_norm``, ``learning_rate``, ``batch``, ``skipped``, ``rng.<stream>``, or a leaf."""
    expected: Any
    got: Any
    start: int = 0
    """How often the run had been started before, when it came out otherwise."""

    @property
    def component(self) -> str | None:
        """The component that it is about; None where it may be any."""
        if self.field in _COMPONENT_OF:
            return _COMPONENT_OF[self.field]
        # A random stream of this rank, or a leaf.
        return component_of(self.field)

    @property
    def ulp(self) -> int | None:
        """How many representable numbers lie between two finite floats; None for anything else.

        Of float32, where both are such numbers, as losses are; else of float64.
        """
        if self.field not in _FLOATS or None in (self.expected, self.got):
            return None
        one, other = float.fromhex(self.expected), float.fromhex(self.got)
        if not (math.isfinite(one) and math.isfinite(other)):
            return None
        for floats, integers in (("<f", "<i"), ("<d", "<q")):
            ranks = [_rank_of(number, floats, integers) for number in (one, other)]
            if None not in ranks:
                return abs((ranks[0] or 0) - (ranks[1] or 0))
        return None

    def _sides(self) -> dict[str, Any]:
        """What was expected and what came: floats as numbers beside their bits, anything else as the ledger has it."""
        values = {"expected": self.expected, "got": self.got}
        if self.field in _FLOATS and all(isinstance(value, str) for value in values.values()):
            return with_bits(**{side: float.fromhex(value) for side, value in values.items()})
        return values

    def __str__(self) -> str:
        where = f"step {self.step}, rank {self.rank}"
        if self.field.startswith(_RNG) and self.field.count(".") == 1:
            return f"{where}: random stream {self.field.removeprefix(_RNG)} stands elsewhere than in the reference"
        if self.field == "batch":
            return f"{where}: the batch is another one than in the reference"
        if self.field in _FLOATS and all(isinstance(value, str) for value in (self.expected, self.got)):
            one, other = (repr(float.fromhex(value)) for value in (self.expected, self.got))
            apart = "" if self.ulp is None else f" ({self.ulp} ULP apart)"
            return f"{where}: {self.field.replace('_', ' ')} {one} in the reference, {other} here{apart}"
        if self.field in _COMPONENT_OF:
            return f"{where}: {self.field} {self.expected} in the reference, {self.got} here"
        return f"{where}: '{self.field}' has other bits than in the reference"

    def as_difference(self) -> Difference:
        """The same, in the form that all checks have."""
        sides = self._sides()
        return Difference(
            step=self.step,
            rank=self.rank,
            component=self.component,
            leaf=self.field,
            expected=sides.pop("expected"),
            got=sides.pop("got"),
            ulp=self.ulp,
            details=sides,
        )


def _rank_of(number: float, floats: str, integers: str) -> int | None:
    """The place of a float among all of its kind, in order; None where it is none of that kind."""
    with contextlib.suppress(OverflowError):
        raw = struct.pack(floats, number)
        if struct.unpack(floats, raw)[0] == number:
            (bits,) = struct.unpack(integers, raw)
            return int(bits) if bits >= 0 else -(int(bits) + (1 << 8 * len(raw) - 1))
    return None


def _differences(expected: LedgerLine, got: LedgerLine, *, rank: int) -> Iterator[Mismatch]:
    left, right = _fields(expected), _fields(got)
    leaves: Mapping[str, str] = {}
    if "leaves" in expected and "leaves" in got:
        left |= expected["leaves"]
        right |= got["leaves"]
        leaves = expected["leaves"] | got["leaves"]
    streams = sorted({name for name in left.keys() | right.keys() if name.startswith(_RNG) and name not in leaves})
    first, *rest = _COMPONENT_OF
    for field in [first, *streams, *rest, *sorted(leaves)]:
        if left.get(field) != right.get(field):
            start = int(got.get("start", 0))
            yield Mismatch(
                step=got["step"], rank=rank, field=field, expected=left.get(field), got=right.get(field), start=start
            )


def _fields(line: LedgerLine) -> dict[str, Any]:
    return {name: line[name] for name in _COMPONENT_OF} | {f"{_RNG}{name}": d for name, d in line["rng"].items()}


def compare_lines(expected: LedgerLine, got: LedgerLine, *, rank: int) -> Sequence[Mismatch]:
    """Everything that two lines of one step do not agree on, that which is nearest to the cause first."""
    return list(_differences(expected, got, rank=rank))
