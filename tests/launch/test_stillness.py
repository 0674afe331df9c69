"""When a rank stands still, and when it only takes its time. No process, no clock."""

import pytest

from ckptrun.launch.stillness import Stillness, Usage
from ckptrun.run.watch.tether import Passed, Tether, read_passed

START, FIRST, SECOND = Passed(), Passed(1, 1, 1, "before_step"), Passed(9, 2, 2, "after_forward")
BETWEEN = Passed(12, 2, 2, "after_optimizer")


def idle(second: int) -> Usage:
    """What our own threads need."""
    return Usage(processor_seconds=0.01 * second, bytes_moved=0)


def computes(second: int) -> Usage:
    return Usage(processor_seconds=0.5 * second, bytes_moved=0)


def reads(second: int) -> Usage:
    return Usage(processor_seconds=0.0, bytes_moved=second)


@pytest.mark.parametrize(
    ("passed", "use", "found_after"),
    [
        (START, idle, 21),
        (START, computes, None),
        (START, reads, None),
        (FIRST, idle, 21),
        (FIRST, computes, None),
        (SECOND, idle, 21),
        (SECOND, computes, 21),
        (SECOND, reads, 21),
        (BETWEEN, computes, 21),
        (BETWEEN, reads, None),
    ],
)
def test_what_counts_as_life_depends_on_where_the_rank_is(passed, use, found_after) -> None:
    stillness = Stillness(limit_seconds=20.0, now=-1.0)
    assert not stillness.look(0.0, passed, use(0))
    found = next((second for second in range(1, 100) if stillness.look(float(second), passed, use(second))), None)
    assert found == found_after if passed is not START else found in (found_after, 20)


def test_a_rank_that_passes_points_is_never_still() -> None:
    stillness = Stillness(limit_seconds=20.0, now=0.0)
    for second in range(0, 200, 15):
        assert not stillness.look(float(second), Passed(second + 1, 5, 5, "before_step"), idle(second))
    assert stillness.since == 195.0
    assert not stillness.look(214.0, Passed(196, 5, 5, "before_step"), idle(214))
    assert stillness.look(216.0, Passed(196, 5, 5, "before_step"), idle(216))


def test_how_far_a_rank_is_can_be_read_from_outside(tmp_path) -> None:
    assert read_passed(tmp_path / "rank") == Passed()
    tether = Tether(None, tmp_path / "rank")
    for point, step in [("loading", 0), ("before_step", 7), ("after_forward", 7), ("before_step", 8)]:
        tether.passed(point, step)
    assert read_passed(tmp_path / "rank") == Passed(number=4, begun=2, step=8, point="before_step")
