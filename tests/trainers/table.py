"""Proves every job and writes ``docs/trainers.md`` from the verdicts: ``python -m tests.trainers.table``.

With names of cases only those are proved, and the other rows stay as they are.
"""

import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckptrun.evidence.verdict import Verdict
from tests.trainers.cases import CASES, Case
from tests.trainers.run_case import prove_case

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trainers.md"
_HEAD = """# Trainers

What a proof says of the trainers that people use, each in the settings of a small job in `examples/jobs` that has no line for
ckptrun. Written from the verdicts by `python -m tests.trainers.table`; `tests/trainers/test_trainers.py` asserts the same. All on
CPU. [jobs.md](jobs.md) says how to prove a job of your own.

| trainer | setting | job | verdict | found by | blamed | what is lost | upstream |
|---|---|---|---|---|---|---|---|
"""


def cells_of(case: Case) -> list[str]:
    """What a row says of a case before it is proved."""
    options = " ".join([f"`examples/jobs/{case.job}", *case.options]) + "`"
    return [case.trainer, case.setting, options]


def row(case: Case, found: Verdict) -> str:
    """The row of a case."""
    check = "-" if found.status == "equal" else found.reason.partition(":")[0]
    cells = [*cells_of(case), str(found.status), check, found.blame or "-", case.lost, case.upstream]
    return f"| {' | '.join(cells)} |"


def rows_of(page: str) -> Iterator[list[str]]:
    """The cells of each case that ``page`` lists."""
    for line in page.splitlines():
        if line.startswith("| ") and not line.startswith("| trainer |"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def write(names: Sequence[str]) -> int:
    """Prove the cases with these names, or all; write the page, if all end as they must."""
    known = {tuple(cells[:3]): f"| {' | '.join(cells)} |" for cells in rows_of(PAGE.read_text())}
    rows, wrong = [], []
    for case in CASES:
        there = known.get(tuple(cells_of(case)))
        if names and case.name not in names and there is not None:
            rows.append(there)
            continue
        with tempfile.TemporaryDirectory() as folder:
            found = prove_case(case, Path(folder, "proof"))
        rows.append(row(case, found))
        sys.stdout.write(f"{rows[-1]}\n")
        wrong += [case.name] if (found.status, found.blame) != (case.verdict, case.blame) else []
    if wrong:
        sys.stderr.write(f"not as they must be: {', '.join(wrong)}\n")
        return 1
    PAGE.write_text(_HEAD + "\n".join(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(write(sys.argv[1:]))
