"""Proves every job and writes ``docs/trainers.md`` from the verdicts: ``python -m tests.trainers.table``.

With names of cases only those are proved, and the other rows stay as they are; ``crash`` names all crash states.
"""

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from ckptrun.evidence.verdict import Verdict
from tests.trainers.cases import CASES, CRASH_CASES, Case
from tests.trainers.run_case import prove_case, states_of

PAGE = Path(__file__).resolve().parents[2] / "docs" / "trainers.md"
_HEAD = """# Trainers

What a proof says of the trainers that people use, each in the settings of a small job in `examples/jobs` that has no line for
ckptrun. Written from the verdicts by `python -m tests.trainers.table`; `tests/trainers/test_trainers.py` asserts the same. All on
CPU. [jobs.md](jobs.md) says how to prove a job of your own.

| trainer | setting | job | verdict | found by | blamed | what is lost | upstream |
|---|---|---|---|---|---|---|---|
"""
_CRASH_HEAD = """
## Every crash state of a save

What the same jobs come to when they are killed at any moment of one save, as `ckptrun prove crash=save crash.power_cut=false` judges it
([jobs.md](jobs.md#every-crash-state-of-a-save)): in how many states. Written by `python -m tests.trainers.table crash`; the tests repeat
Lightning.

| trainer | setting | job | states | equal | lost work | failed | different | what is lost | upstream |
|---|---|---|---|---|---|---|---|---|---|
"""
_TAIL = """
## Tried by hand

What cannot be installed beside the rest, each in an environment of its own.

- **datasets 5.0.0** (datasets#8308; it wants another fsspec): `ckptrun prove fault=sigkill -- ENVIRONMENT/bin/python examples/jobs/streaming.py
  --output_dir {run}` is different, `trajectory: step 9, rank 0: the batch is another one than in the reference`, blamed on data. After the
  first resume all is equal, and the state of the stream stands still; the second one begins anew. 5.2.0 is equal, as above.
- **torchtitan 0.3.0** with torch 2.13.0 for CPU: it installs, but not beside datasets 5.2 (it wants datasets below 4.8, and with it another
  fsspec), and wants an accelerator and triton; `examples/jobs/torchtitan_cpu.py` is what it takes to do without. `ckptrun prove fault=sigkill --
  ENVIRONMENT/bin/python -m torch.distributed.run --nproc-per-node 2 examples/jobs/torchtitan_llama.py --output_dir {run}` (Llama 3 of its
  debug size, FSDP2, DCP, `debug.deterministic`) is equal, on one rank as well. There is no dropout in it: random streams are in no checkpoint of
  torchtitan. Its asynchronous saves, and those by torch_checkpointing, were not tried.
- **DeepSpeed 0.19.8** on CPU: installs beside torch 2.13.0, and compiles an extension at its first start (g++, ninja; minutes), so that it is in no
  extra. `ckptrun prove fault=sigkill -- ENVIRONMENT/bin/python -m torch.distributed.run --nproc-per-node 2 examples/jobs/deepspeed_zero.py
  --output_dir {run}` (ZeRO stage 1, gloo, `DS_ACCELERATOR=cpu`) is equal. What is compared are the flat parts that a rank holds, under no
  names of parameters. Stages 2 and 3 were not tried.
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


def crash_row(case: Case, states: Counter[str]) -> str:
    """The row of a case whose crash states were judged."""
    numbers = [states.total(), *(states[came] for came in ("equal", "lost_work", "failed", "different"))]
    return f"| {' | '.join([*cells_of(case), *map(str, numbers), case.lost, case.upstream])} |"


def rows_of(page: str, *, of_crashes: bool = False) -> Iterator[list[str]]:
    """The cells of each case that ``page`` lists: of the proofs, or of the crash states."""
    steps, _, crashes = page.partition(_CRASH_HEAD.splitlines()[1])
    for line in (crashes if of_crashes else steps).splitlines():
        if line.startswith("| ") and not line.startswith("| trainer |"):
            yield [cell.strip() for cell in line.strip("|").split("|")]


def proved(case: Case) -> tuple[str, bool]:
    """Prove a case; return its row, and whether it ended as it must."""
    with tempfile.TemporaryDirectory() as folder:
        found = prove_case(case, Path(folder, "proof"))
        is_right = (found.status, found.blame) == (case.verdict, case.blame)
        if not case.came:
            return row(case, found), is_right
        states = states_of(Path(folder, "proof"))
    return crash_row(case, states), is_right and set(states) == set(case.came)


def write(names: Sequence[str]) -> int:
    """Prove the cases with these names, or all; write the page, if all end as they must."""
    page = PAGE.read_text()
    wrong, tables = [], []
    for cases, of_crashes in ((CASES, False), (CRASH_CASES, True)):
        known = {tuple(cells[:3]): f"| {' | '.join(cells)} |" for cells in rows_of(page, of_crashes=of_crashes)}
        rows = []
        for case in cases:
            there = known.get(tuple(cells_of(case)))
            is_named = ("crash" in names) if of_crashes else (case.name in names)
            if names and not is_named and there is not None:
                rows.append(there)
                continue
            one, is_right = proved(case)
            rows.append(one)
            sys.stdout.write(f"{one}\n")
            sys.stdout.flush()
            wrong += [] if is_right else [case.name]
        tables.append("\n".join(rows) + "\n")
    if wrong:
        sys.stderr.write(f"not as they must be: {', '.join(wrong)}\n")
        return 1
    PAGE.write_text(_HEAD + tables[0] + _CRASH_HEAD + tables[1] + _TAIL)
    return 0


if __name__ == "__main__":
    sys.exit(write(sys.argv[1:]))
