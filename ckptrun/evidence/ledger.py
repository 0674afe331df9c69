"""The ledger: what a run did at each step, rank by rank, as one JSON line each; and how two of them are compared.

A line holds the bits of loss, gradient norm and learning rate (``float.hex()``), the digest of what the rank's batches
held (content, not position), a digest of each random stream after the step, and how often the run had been started
before (``start``). In a proof it also holds fingerprints of the rank's part of weights and moments after the step
(``trained``; in the first line of a start those before it, too: ``trained_before``). ``by`` is the mark of what the
step was computed with (see ``lineage``). After every
``proof.digest_every_steps`` steps it also holds the digest of each leaf (``leaves``). A line is written with one call,
so a kill leaves at most one that is cut; a resumed run goes on in the same file. Steps that are done again after a
resume stand there again, and must say the same if they were computed with the same.

Torch-free: reports read ledgers too.
"""

import contextlib
import json
import math
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ckptrun.evidence.difference import Difference
from ckptrun.evidence.files import ledger_file
from ckptrun.files import with_bits

__all__ = ["Ledger", "Line", "Mismatch", "compare", "compare_lines"]

Line = Mapping[str, Any]

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
        return self.field.partition(".")[0]

    @property
    def ulp(self) -> int | None:
        """How many representable numbers lie between two finite floats; None for anything else.

        Of float32, where both are such numbers, as losses are; else of float64.
        """
        if self.field not in _FLOATS:
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


class Ledger:
    """The ledger of one rank, open for appending.

    A step that stands there already under the same mark must come out the same when it is done again. What earlier
    starts have found of that counts too: how often one asks changes no answer.

    Args:
        run_dir: The run folder.
        rank: Whose ledger.
        first_step: The step this start goes on from.
        mark: Of what this start computes with, and of all that its state was computed with; see ``lineage``.
    """

    def __init__(self, run_dir: Path, rank: int, *, first_step: int, mark: str = "") -> None:
        file = ledger_file(run_dir, rank)
        file.parent.mkdir(parents=True, exist_ok=True)
        self._rank = rank
        self._mark = mark
        self.mismatch: Mismatch | None = None
        """The first step that was done again and came out otherwise, in any start."""
        self.repeated = 0
        """How many times a step was done again."""
        seen: dict[tuple[int, str], Line] = {}
        for line in _cut_to_whole_lines(file):
            self._compare(seen.setdefault((line["step"], line.get("by", "")), line), line)
        self._done_before = {step: line for (step, by), line in seen.items() if by == mark and step > first_step}
        self._file: IO[bytes] = file.open("ab", buffering=0)

    def append(self, line: Line) -> None:
        """Write down a step."""
        raw = json.dumps({**line, "by": self._mark}).encode()
        self._file.write(raw + b"\n")
        before = self._done_before.get(line["step"])
        if before is not None:
            self._compare(before, json.loads(raw))

    def _compare(self, before: Line, line: Line) -> None:
        if before is line:
            return
        self.repeated += 1
        if self.mismatch is None:
            self.mismatch = next(_differences(before, line, rank=self._rank), None)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut_to_whole_lines(file: Path) -> list[Line]:
    """Remove what a kill left of a last line; return the lines."""
    if not file.is_file():
        return []
    raw = file.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) != len(raw):
        with file.open("r+b") as opened:
            opened.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _differences(expected: Line, got: Line, *, rank: int) -> Iterator[Mismatch]:
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


def _fields(line: Line) -> dict[str, Any]:
    return {name: line[name] for name in _COMPONENT_OF} | {f"{_RNG}{name}": d for name, d in line["rng"].items()}


def compare_lines(expected: Line, got: Line, *, rank: int) -> Sequence[Mismatch]:
    """Everything that two lines of one step do not agree on, that which is nearest to the cause first."""
    return list(_differences(expected, got, rank=rank))


def compare(expected: Sequence[Line], got: Sequence[Line], *, rank: int) -> tuple[int, Mismatch | None]:
    """Compare two ledgers of one rank over the steps that both have; steps that were done twice, both times.

    Returns:
        How many steps both have, and the first mismatch.
    """
    reference = {line["step"]: line for line in expected}
    steps = sorted({line["step"] for line in got} & reference.keys())
    by_step: dict[int, list[Line]] = {}
    for line in got:
        by_step.setdefault(line["step"], []).append(line)
    for step in steps:
        for line in by_step[step]:
            for mismatch in _differences(reference[step], line, rank=rank):
                return len(steps), mismatch
    return len(steps), None
