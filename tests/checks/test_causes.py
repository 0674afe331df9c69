"""Of several differences the one that was there first is the cause, and names the verdict."""

from functools import partial
from itertools import pairwise

import pytest

from ckptrun.checks.causes import moment_of
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.starts import Start
from ckptrun.evidence.verdict import Check, Status, verdict_of

STARTS = [
    Start(index=0, committed=["/run/step_00000004", "/run/step_00000008"]),
    Start(index=1, step=8, resumed_from="/run/step_00000008", committed=["/run/step_00000009", "/run/step_00000012"]),
    Start(index=2, step=12, resumed_from="/run/step_00000012"),
]


def different(name: str, step: int | None, *, start: int | None = None) -> Check:
    first = None if step is None else Difference(step=step, component="model")
    return Check(name=name, status=Status.different, detail="it differs", first_difference=first, start=start)


IN_TIME = [
    different("trajectory", 8, start=0),
    different("replicas", 8, start=0),
    different("saved_equals_live", 8),
    different("saves_differ", 8),
    different("nothing_lost", None, start=1),
    different("replicas", 8, start=1),
    different("trajectory", 9, start=1),
    different("replicas", 9, start=1),
    different("saved_equals_live", 12),
    different("loaded_equals_saved", 12, start=2),
    different("final_state", 12),
    different("damage_noticed", None),
]


def test_moments_stand_in_the_order_in_which_one_decides_the_next() -> None:
    for earlier, later in pairwise(IN_TIME):
        assert moment_of(earlier, STARTS) < moment_of(later, STARTS), (earlier, later)


@pytest.mark.parametrize("number", range(len(IN_TIME) - 1))
def test_the_verdict_is_that_of_the_earliest_whatever_the_order_of_the_checks(number: int) -> None:
    cause, *effects = IN_TIME[number:]
    verdict = verdict_of([*reversed(effects), cause], moment_of=partial(moment_of, starts=STARTS))
    assert verdict.status is Status.different
    assert verdict.reason == f"{cause.name}: it differs"
    assert verdict.first_difference == cause.first_difference
    assert [check.name for check in verdict.checks] == [check.name for check in [*reversed(effects), cause]]


def test_a_save_that_was_made_again_is_of_the_start_that_made_it_last() -> None:
    again = Start(index=3, step=8, committed=["/run/step_00000012"])
    assert moment_of(different("saved_equals_live", 12), [*STARTS, again])[0] == 3


def test_a_run_that_never_began_has_a_moment_too() -> None:
    assert moment_of(different("trajectory", 3), [])[1] == 3
