"""``docs/zoo.md`` lists the cases that there are, as they must end."""

from collections import Counter

from tests.zoo.cases import CASES
from tests.zoo.left_out import LEFT_OUT
from tests.zoo.table import NONE, PAGE, cells_of, rows_of, tail


def test_the_page_lists_every_case_as_it_must_end() -> None:
    """After a change of the cases: ``python -m tests.zoo.table``."""
    rows = list(rows_of(PAGE.read_text()))
    assert [cells[:3] for cells in rows] == [cells_of(case) for case in CASES]
    for case, (*_, verdict, checks, seen, blame) in zip(CASES, rows, strict=True):
        assert verdict == case.verdict
        assert blame == (case.blame or NONE)
        assert case.check in checks
        assert seen


def test_the_page_ends_with_what_is_sound_and_what_is_left_out() -> None:
    assert PAGE.read_text().endswith(tail())


def test_no_two_cases_are_the_same() -> None:
    assert [text for text, count in Counter((c.bug, c.plant) for c in CASES).items() if count > 1] == []
    assert [ids for case in CASES for ids in case.ids.split() if ids in LEFT_OUT and ids != "C19"] == []


def test_every_case_says_how_it_is_planted() -> None:
    assert [case.name for case in CASES if not case.how or "|" in case.how + case.bug] == []
