"""Trainers as they are released: what survives a kill is equal, and what does not is found, with whom to blame."""

import pytest

from tests.trainers.cases import CASES, Case
from tests.trainers.run_case import prove_case
from tests.trainers.table import PAGE, cells_of, rows_of

# One that is equal and one that is not, for those who do not wait for all of them.
QUICK = ("gan", "accelerate_shuffle")


def marked(case: Case) -> object:
    return pytest.param(case, id=case.name, marks=[] if case.name in QUICK else [pytest.mark.slow])


@pytest.mark.crash
@pytest.mark.parametrize("case", [marked(case) for case in CASES])
def test_a_trainer_is_judged_as_it_is(case, tmp_path):
    if case.trainer == case.package:
        pytest.skip(f"{case.package} is not installed: pip install 'ckptrun[jobs]'")
    found = prove_case(case, tmp_path / "proof")
    assert (str(found.status), found.blame) == (case.verdict, case.blame), found.reason
    assert found.reason.startswith(case.check), found.reason


def test_the_page_lists_every_job_as_it_must_end():
    """After a change of the jobs: ``python -m tests.trainers.table``."""
    rows = list(rows_of(PAGE.read_text()))
    assert [cells[1:3] for cells in rows] == [cells_of(case)[1:] for case in CASES]
    # Whoever has not installed all of them is told by nobody which version is pinned.
    assert all(cells[0].startswith(case.trainer) for cells, case in zip(rows, CASES, strict=True))
    for case, (*_, verdict, check, blame, lost, upstream) in zip(CASES, rows, strict=True):
        assert (verdict, check, blame) == (case.verdict, case.check or "-", case.blame or "-")
        assert (lost, upstream) == (case.lost, case.upstream)
