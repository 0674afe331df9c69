"""Two runs, held against each other by their ledgers: step by step, on every rank. Torch-free."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from ckptrun.evidence.mismatch import LedgerLine, Mismatch, compare_lines
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.files import read_lines

__all__ = ["LedgerComparison", "compare_ledgers", "earliest", "step_like"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerComparison:
    """What came out."""

    steps: int
    """How many steps both have, on the rank that has fewest."""
    lines: int
    """How many lines were compared, steps that were done twice both times, over all ranks."""
    repeated: int
    """Steps that were done more than once, on rank 0."""
    ranks: int
    first: Mismatch | None
    lacking: int | None = None
    """The first step that only the reference has, on any rank."""
    beyond: int | None = None
    """The first step that only the run has."""

    @classmethod
    def of_rank(cls, expected: Sequence[LedgerLine], got: Sequence[LedgerLine], *, rank: int) -> Self:
        """Compare the ledgers of one rank over the steps that both have; steps that were done twice, both times."""
        reference = {line["step"]: line for line in expected}
        done = {line["step"] for line in got}
        both = sorted((line for line in got if line["step"] in reference), key=lambda line: int(line["step"]))
        found = (compare_lines(reference[line["step"]], line, rank=rank) for line in both)
        return cls(
            steps=len(done & reference.keys()),
            lines=len(got),
            repeated=len(got) - len(done),
            ranks=1,
            first=next((mismatches[0] for mismatches in found if mismatches), None),
            lacking=min(reference.keys() - done, default=None),
            beyond=min(done - reference.keys(), default=None),
        )

    @classmethod
    def of_ranks(cls, each: Sequence["LedgerComparison"]) -> Self:
        """Put those of all ranks together; ``each`` is by rank."""
        return cls(
            steps=min((own.steps for own in each), default=0),
            lines=sum(own.lines for own in each),
            repeated=each[0].repeated if each else 0,
            ranks=len(each),
            first=earliest(own.first for own in each),
            lacking=min((own.lacking for own in each if own.lacking is not None), default=None),
            beyond=min((own.beyond for own in each if own.beyond is not None), default=None),
        )


def earliest(mismatches: Iterable[Mismatch | None]) -> Mismatch | None:
    """Return that of the first step, and there of the first rank; None where there is none."""
    found = [mismatch for mismatch in mismatches if mismatch is not None]
    return min(found, key=lambda mismatch: (mismatch.step, mismatch.rank), default=None)


def compare_ledgers(
    expected: Path, got: Path, *, ranks: int, starts: range | None = None, last_step: int | None = None
) -> LedgerComparison:
    """Compare the ledgers of two runs.

    Args:
        expected: The run folder of the reference.
        got: That of the run under proof.
        ranks: Of both.
        starts: Compare only what these starts of ``got`` did; None: all.
        last_step: Compare no further.
    """
    each = []
    for rank in range(ranks):
        mine = [
            line
            for line in read_lines(ledger_file(got, rank))
            if (starts is None or line["start"] in starts) and (last_step is None or line["step"] <= last_step)
        ]
        each.append(LedgerComparison.of_rank(read_lines(ledger_file(expected, rank)), mine, rank=rank))
    return LedgerComparison.of_ranks(each)


def step_like(expected: Path, got: Path, mismatch: Mismatch) -> int | None:
    """Return the step of the reference that did, bit for bit, what the step of ``mismatch`` did; None for none."""
    lines = read_lines(ledger_file(got, mismatch.rank))
    mine = next((line for line in lines if (line["step"], line["start"]) == (mismatch.step, mismatch.start)), None)
    if mine is None:
        return None
    others = read_lines(ledger_file(expected, mismatch.rank))
    return next((other["step"] for other in others if not compare_lines(other, mine, rank=mismatch.rank)), None)
