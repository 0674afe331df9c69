"""The ledger: what a run did at each step, rank by rank, as one JSON line each.

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

import json
from pathlib import Path
from typing import IO

from ckptrun.evidence.mismatch import LedgerLine, Mismatch, compare_lines
from ckptrun.evidence.run_folder import ledger_file

__all__ = ["Ledger"]


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
        seen: dict[tuple[int, str], LedgerLine] = {}
        for line in _cut_to_whole_lines(file):
            self._compare(seen.setdefault((line["step"], line.get("by", "")), line), line)
        self._done_before = {step: line for (step, by), line in seen.items() if by == mark and step > first_step}
        self._file: IO[bytes] = file.open("ab", buffering=0)

    def append(self, line: LedgerLine) -> None:
        """Write down a step."""
        raw = json.dumps({**line, "by": self._mark}).encode()
        self._file.write(raw + b"\n")
        before = self._done_before.get(line["step"])
        if before is not None:
            self._compare(before, json.loads(raw))

    def _compare(self, before: LedgerLine, line: LedgerLine) -> None:
        if before is line:
            return
        self.repeated += 1
        if self.mismatch is None:
            self.mismatch = next(iter(compare_lines(before, line, rank=self._rank)), None)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _cut_to_whole_lines(file: Path) -> list[LedgerLine]:
    """Remove what a kill left of a last line; return the lines."""
    if not file.is_file():
        return []
    raw = file.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    if len(whole) != len(raw):
        with file.open("r+b") as opened:
            opened.truncate(len(whole))
    return [json.loads(line) for line in whole.splitlines()]
