"""Steps must repeat themselves where everything before them was computed alike, and nowhere else."""

from pathlib import Path
from typing import Any

import pytest

from ckptrun.evidence.ledger import Ledger
from ckptrun.evidence.lineage import Lineage

SHORT = Lineage().continued(0, "20 steps")
LONG = SHORT.continued(20, "40 steps")
BACK = SHORT.continued(10, "40 steps")


def line(step: int, *, loss: float = 1.0) -> dict[str, Any]:
    return {
        "step": step, "start": 0, "loss": loss.hex(), "gradient_norm": "0x1p0", "learning_rate": "0x1p0",
        "skipped": False, "batch": "b", "rng": {},
    }  # fmt: skip


def written(folder: Path, lineage: Lineage, first: int, last: int, **options: Any) -> Ledger:
    """A start that takes the steps after ``first``, up to ``last``."""
    ledger = Ledger(folder, 0, first_step=first, mark=lineage.mark)
    for step in range(first + 1, last + 1):
        ledger.append(line(step, **options))
    ledger.close()
    return ledger


def test_a_resume_under_the_same_conditions_leaves_the_lineage_as_it_is() -> None:
    assert LONG.continued(30, "40 steps") == LONG
    assert LONG.continued(30, "40 steps", note="without rng") != LONG
    assert len({SHORT.mark, LONG.mark, BACK.mark, LONG.continued(30, "20 steps").mark}) == 4


def test_a_lineage_comes_back_from_a_manifest() -> None:
    found = Lineage.of_checkpoint({"history": BACK.as_json()}, step=30, folder="anywhere")
    assert (found, found.mark) == (BACK, BACK.mark)
    foreign = [Lineage.of_checkpoint({}, step=3, folder=name) for name in ("one", "other")]
    assert foreign[0].mark != foreign[1].mark


def test_steps_that_were_computed_otherwise_need_not_repeat_themselves(tmp_path: Path) -> None:
    written(tmp_path, SHORT, 0, 20)
    written(tmp_path, LONG, 20, 40)
    back = written(tmp_path, BACK, 10, 40, loss=2.0)
    assert (back.mismatch, back.repeated) == (None, 0)
    again = written(tmp_path, BACK, 10, 40, loss=2.0)
    assert (again.mismatch, again.repeated) == (None, 30)


def test_what_differed_once_differs_however_often_one_asks(tmp_path: Path) -> None:
    written(tmp_path, SHORT, 0, 20)
    back = written(tmp_path, SHORT, 10, 20, loss=2.0)
    assert back.mismatch is not None
    assert back.mismatch.step == 11
    # A start that has nothing left to do, and one that does it again as it came out the last time.
    for first in (20, 10):
        asked = written(tmp_path, SHORT, first, 20, loss=2.0)
        assert asked.mismatch == back.mismatch


def test_lines_of_before_marks_were_written_are_held_against_none(tmp_path: Path) -> None:
    written(tmp_path, Lineage(), 0, 4)
    file = tmp_path / "ledger/rank_00000.jsonl"
    file.write_text(file.read_text().replace(f', "by": "{Lineage().mark}"', ""))
    assert '"by"' not in file.read_text()
    assert written(tmp_path, SHORT, 2, 4, loss=2.0).mismatch is None


@pytest.mark.parametrize(
    ("lineage", "step", "by", "is_held"),
    [
        (LONG, 20, SHORT, True),
        (LONG, 21, LONG, True),
        (LONG, 21, SHORT, False),
        (BACK, 10, SHORT, True),
        (BACK, 11, SHORT, False),
        (BACK, 21, LONG, False),
        (BACK, 21, BACK, True),
        (SHORT, 30, SHORT, True),
    ],
)
def test_a_line_is_of_the_state_that_is_there_now_or_was_left_behind(lineage, step, by, is_held) -> None:
    assert lineage.holds({"step": step, "by": by.mark}) is is_held
