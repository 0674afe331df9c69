"""Where a command is made to fail, from what its reference has shown."""

import pytest

from ckptrun.config.fault import FaultConfig, FaultKind, FaultPoint
from ckptrun.errors import ConfigError
from ckptrun.foreign.plan import JobFacts, armed_in_start, check_fault, plan_job_faults

FACTS = JobFacts(steps=24, ranks=2, saves=[4, 8, 12, 16, 20, 24], renames=[4, 8, 12, 16, 20, 24], removals=[12, 16, 20])
PLAIN = JobFacts(steps=24, ranks=1, saves=[4, 8], accumulates=False)


def steps_of(facts: JobFacts = FACTS, kind: str = "sigkill", **keys: object) -> list[tuple[str, int | None]]:
    fault = FaultConfig(kind=FaultKind(kind), **keys)
    return [(str(one.point), one.step) for one in plan_job_faults(fault, facts)]


def test_it_strikes_after_a_save_and_again_after_one_of_the_resumed_run():
    assert steps_of() == [("after_optimizer", 6), ("after_optimizer", 10)]


def test_the_step_that_is_asked_for_is_taken():
    assert steps_of(step=13) == [("after_optimizer", 13), ("after_optimizer", 18)]


@pytest.mark.parametrize("point", ["at_request", "writing", "before_commit"])
def test_a_save_that_it_strikes_in_has_one_before_it(point):
    assert steps_of(point=FaultPoint(point)) == [(point, 8), (point, 12)]


def test_after_a_rename_the_checkpoint_is_gone_on_from():
    assert steps_of(point=FaultPoint.after_commit) == [("after_commit", 8), ("after_commit", 16)]


def test_a_removal_is_struck_where_something_is_removed():
    assert steps_of(point=FaultPoint.removing) == [("removing", 16), ("removing", 20)]


@pytest.mark.parametrize(
    ("point", "says"),
    [
        ("before_commit", "before_commit never fires: the job has renamed nothing in {run}"),
        ("after_commit", "after_commit never fires: the job has renamed nothing in {run}"),
        ("removing", "removing never fires: the job has removed nothing in {run}"),
        ("mid_accumulation", "mid_accumulation never fires: each step of the job has one backward pass"),
    ],
)
def test_what_the_job_never_does_is_told(point, says):
    with pytest.raises(ConfigError, match=says):
        steps_of(PLAIN, point=FaultPoint(point))


def test_a_load_is_struck_after_a_kill():
    assert steps_of(point=FaultPoint.loading) == [("after_optimizer", 6), ("loading", None)]


def test_with_saves_at_the_end_of_two_epochs_it_strikes_once():
    assert steps_of(JobFacts(steps=24, ranks=1, saves=[12, 24])) == [("after_optimizer", 18)]


def test_with_one_save_at_the_end_it_strikes_before_it():
    assert steps_of(JobFacts(steps=24, ranks=1, saves=[24])) == [("after_optimizer", 12)]


def test_more_faults_come_in_their_order():
    more = [{"kind": "exception", "step": 15}]
    assert steps_of(step=6, more=more) == [("after_optimizer", 6), ("after_optimizer", 15)]


def armed_steps(*, fired: set[int], resumed: int = 0, kind: str = "sigkill", **keys: object) -> list[int | None]:
    fault = FaultConfig(kind=FaultKind(kind), **keys)
    planned = plan_job_faults(fault, FACTS)
    armed = armed_in_start(planned, fired, resumed=resumed, facts=FACTS, may_move=not fault.more)
    return [one.step for one in armed]


def test_one_fault_strikes_in_a_start():
    assert armed_steps(fired=set()) == [6]
    assert armed_steps(fired={0}, resumed=4) == [10]
    assert armed_steps(fired={0, 1}, resumed=8) == []


def test_a_start_that_goes_on_from_a_later_step_than_expected_is_struck_after_that():
    """A job that saves when it gets a signal resumes from there."""
    assert armed_steps(fired={0}, resumed=10) == [14]
    assert armed_steps(fired={0}, resumed=24) == [10]
    assert armed_steps(fired={0}, resumed=15, more=[{"kind": "sigkill", "step": 12}]) == [12]


@pytest.mark.parametrize(("kind", "steps"), [("sigterm", [6, None]), ("sigint", [6, None]), ("sigkill", [6])])
def test_a_kill_in_a_save_without_a_step_strikes_the_one_that_answers_a_signal(kind, steps):
    more = [{"kind": "sigkill", "point": "at_request"}]
    assert armed_steps(fired=set(), kind=kind, step=6, more=more) == steps


def test_ranks_are_those_that_are_asked_for():
    fault = FaultConfig(kind=FaultKind.sigkill, rank="all")
    assert {one.ranks for one in plan_job_faults(fault, FACTS)} == {(0, 1)}


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"step": 25}, "fault.step=25 is after the last step: the job takes 24 steps"),
        ({"rank": 2}, "fault.rank=2: the job has 2 ranks, 0 to 1"),
        ({"step": 5, "point": FaultPoint.at_request}, "never fires: saved are the steps 4, 8, 12"),
        ({"step": 4, "point": FaultPoint.removing}, "something is removed after the steps 12, 16, 20"),
    ],
)
def test_what_can_never_strike_is_refused_with_what_was_seen(keys, says):
    with pytest.raises(ConfigError, match=says):
        steps_of(**keys)


@pytest.mark.parametrize(
    ("kind", "point", "says"),
    [
        ("bit_flip", None, "fault=bit_flip strikes only ckptrun's own runs"),
        ("chaos", None, "fault=chaos strikes only ckptrun's own runs"),
        ("sigkill", "staging", "is a point of ckptrun's own saves"),
        ("sigterm", "writing", "can only be killed"),
    ],
)
def test_what_only_our_own_runs_can_be_struck_by_is_refused(kind, point, says):
    with pytest.raises(ConfigError, match=says):
        check_fault(FaultConfig(kind=FaultKind(kind), point=None if point is None else FaultPoint(point)))
