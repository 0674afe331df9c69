"""Trainers as they are released: what survives a kill is equal, and what does not is found, with whom to blame."""

from pathlib import Path

import pytest

from tests.trainers.cases import CASES, Case
from tests.trainers.run_case import prove_case
from tests.trainers.table import PAGE, cells_of, rows_of

# One that is equal and one that is not, for those who do not wait for all of them.
QUICK = ("gan", "accelerate_shuffle")


_SHARES = (("transformers",), ("lightning",))


def of_share(*packages: str) -> pytest.MarkDecorator:
    """The cases of some trainers; of none: those that are left. Each share may run beside the others."""
    known = {name for share in _SHARES for name in share}
    cases = [case for case in CASES if (case.package in packages if packages else case.package not in known)]
    marks = {case.name: [] if case.name in QUICK else [pytest.mark.slow] for case in cases}
    return pytest.mark.parametrize("case", [pytest.param(one, id=one.name, marks=marks[one.name]) for one in cases])


def check(case: Case, folder: Path) -> None:
    if case.trainer == case.package:
        pytest.skip(f"{case.package} is not installed: pip install 'ckptrun[jobs]'")
    found = prove_case(case, folder / "proof")
    assert (str(found.status), found.blame) == (case.verdict, case.blame), found.reason
    assert found.reason.startswith(case.check), found.reason


@pytest.mark.crash
class TestHuggingFaceTrainer:
    @of_share(*_SHARES[0])
    def test_it_is_judged_as_it_is(self, case, tmp_path):
        check(case, tmp_path)


@pytest.mark.crash
class TestLightning:
    @of_share(*_SHARES[1])
    def test_it_is_judged_as_it_is(self, case, tmp_path):
        check(case, tmp_path)


@pytest.mark.crash
class TestOthers:
    @of_share()
    def test_it_is_judged_as_it_is(self, case, tmp_path):
        check(case, tmp_path)


def test_the_page_lists_every_job_as_it_must_end():
    """After a change of the jobs: ``python -m tests.trainers.table``."""
    rows = list(rows_of(PAGE.read_text()))
    assert [cells[1:3] for cells in rows] == [cells_of(case)[1:] for case in CASES]
    # Whoever has not installed all of them is told by nobody which version is pinned.
    assert all(cells[0].startswith(case.trainer) for cells, case in zip(rows, CASES, strict=True))
    for case, (*_, verdict, check, blame, lost, upstream) in zip(CASES, rows, strict=True):
        assert (verdict, check, blame) == (case.verdict, case.check or "-", case.blame or "-")
        assert (lost, upstream) == (case.lost, case.upstream)
