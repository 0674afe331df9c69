"""Trainers as they are released: what survives a kill is equal, and what does not is found, with whom to blame."""

from pathlib import Path

import pytest

from tests.support.strace import needs_strace
from tests.trainers.cases import CASES, CRASH_CASES, Case
from tests.trainers.run_case import prove_case, states_of
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


def crash_case(name: str) -> Case:
    """One whose crash states are judged here, too; the others are on the page alone."""
    return next(case for case in CRASH_CASES if case.name == name)


def check(case: Case, folder: Path) -> None:
    if case.trainer == case.package:
        pytest.skip(f"{case.package} is not installed: pip install 'ckptrun[jobs]'")
    found = prove_case(case, folder / "proof")
    assert (str(found.status), found.blame) == (case.verdict, case.blame), found.reason
    assert found.reason.startswith(case.check), found.reason
    if case.came:
        assert set(states_of(folder / "proof")) == set(case.came)


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

    @needs_strace
    @pytest.mark.slow
    def test_a_crash_after_the_checkpoint_and_before_its_copy_loses_it(self, tmp_path):
        check(crash_case("lightning"), tmp_path)


@pytest.mark.crash
class TestOthers:
    @of_share()
    def test_it_is_judged_as_it_is(self, case, tmp_path):
        check(case, tmp_path)


def test_the_page_lists_every_job_as_it_must_end():
    """After a change of the jobs: ``python -m tests.trainers.table``."""
    page = PAGE.read_text()
    rows, crashes = list(rows_of(page)), list(rows_of(page, of_crashes=True))
    assert [cells[1:3] for cells in rows] == [cells_of(case)[1:] for case in CASES]
    # Whoever has not installed all of them is told by nobody which version is pinned.
    assert all(cells[0].startswith(case.trainer) for cells, case in zip(rows, CASES, strict=True))
    for case, (*_, verdict, check, blame, lost, upstream) in zip(CASES, rows, strict=True):
        assert (verdict, check, blame) == (case.verdict, case.check or "-", case.blame or "-")
        assert (lost, upstream) == (case.lost, case.upstream)
    assert [cells[1:3] for cells in crashes] == [cells_of(case)[1:] for case in CRASH_CASES]
    for cells, case in zip(crashes, CRASH_CASES, strict=True):
        assert cells[0].startswith(case.trainer)
        states, *each = map(int, cells[3:8])
        assert sum(each) == states
        came = dict(zip(("equal", "lost_work", "failed", "different"), each, strict=True))
        assert {name for name, number in came.items() if number} == set(case.came)
