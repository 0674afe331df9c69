"""Runs the whole zoo and writes ``docs/zoo.md`` from what came out: ``python -m tests.zoo.table``."""

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.zoo.case import Case
from tests.zoo.cases import CASES
from tests.zoo.left_out import LEFT_OUT
from tests.zoo.sound import SOUND, VACUOUS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "zoo.md"
NONE = "-"
NEW = "new"
_HEAD = """# The zoo

Bugs of resuming and checkpointing, planted on purpose, and how the proof found them. Written by
`python -m tests.zoo.table`, which makes every proof anew; `tests/zoo/test_planted.py` asserts the same, and
`tests/zoo/test_page.py` that this page lists what is there. Ids are those of a list of bugs seen in public trackers;
`new` are in no list. `different` ends with exit code 3, `not_verified` with 4; an error of the job itself with its own.

| id | bug | planted how | verdict | found by | first seen | blamed |
|---|---|---|---|---|---|---|
"""


def cells_of(case: Case) -> list[str]:
    """What a row says of a case before it is run."""
    return [case.ids or NEW, case.bug, case.how]


def row(case: Case, found: Mapping[str, Any], checks: list[str]) -> str:
    """The row of a case."""
    first = found["first_difference"] or {}
    seen = first.get("operation") or first.get("leaf") or NONE
    step = "" if first.get("step") is None or "step" in seen else f", step {first['step']}"
    by = ", ".join(checks) or "the job's own error"
    cells = [*cells_of(case), found["verdict"], by, f"{seen}{step}", found["blame"] or NONE]
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def rows_of(page: str) -> Iterator[list[str]]:
    """The cells of each case that ``page`` lists."""
    for line in page.splitlines():
        if line.startswith("| ") and not line.startswith("| id |"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def tail() -> str:
    """What the page says beside the table."""
    sound = "; ".join(SOUND)
    lines = [f"- {ids}: {why}" for ids, why in LEFT_OUT.items()]
    return "\n".join(
        [
            "",
            "## What must not be found",
            "",
            f"{len(SOUND)} jobs that are unusual and right end `equal` (`tests/zoo/test_sound.py`): {sound}.",
            "",
            f"{len(VACUOUS)} proofs whose controls, asked for by name, change nothing end `not_verified: vacuous`: "
            f"{', '.join(VACUOUS)}.",
            "",
            "## What is not planted",
            "",
            *lines,
            "- Not seen by any proof: a `load_state_dict` that may not be called twice. Every load fills fresh objects.",
            "",
        ]
    )


def write() -> int:
    """Run every case; write the page, if all end as they must."""
    from tests.zoo.run_case import run_case

    began, rows, wrong = time.monotonic(), [], []
    for number, case in enumerate(CASES, start=1):
        with tempfile.TemporaryDirectory() as folder:
            outcome = run_case(case, Path(folder) / "run")
        rows.append(row(case, outcome.found, outcome.checks))
        wrong += [f"{case.name}: {'; '.join(outcome.wrong(case))}"] if outcome.wrong(case) else []
        print(
            f"{number} of {len(CASES)}: {case.name}: {outcome.found['verdict']}, {outcome.found['blame']}", flush=True
        )
    print(f"{len(rows)} bugs, {time.monotonic() - began:.0f} s", *wrong, sep="\n")
    if not wrong:
        PAGE.write_text(f"{_HEAD}{chr(10).join(rows)}\n{tail()}")
    return len(wrong)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    sys.exit(write())
