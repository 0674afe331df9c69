"""From config to planned faults: where they strike, and which configs are refused."""

import functools
from dataclasses import replace

import pytest

from ckptrun.config.fault import FaultConfig, FaultKind, FaultPoint
from ckptrun.errors import ConfigError
from ckptrun.fault import armed, plan_faults, stop_steps
from tests.support.configs import config_of


@functools.cache
def roomy_config():
    """A job that comes by every point."""
    return config_of("checkpoint=async", "train.accumulate=2", "checkpoint.keep_last=1")


def planned(*overrides: str, world_size: int = 4, in_proof: bool = True):
    return plan_faults(config_of(*overrides), world_size=world_size, in_proof=in_proof)


def places(*overrides: str, **how):
    return [(str(fault.kind), str(fault.point), fault.step) for fault in planned(*overrides, **how)]


def test_none_plans_nothing() -> None:
    assert planned("fault=none") == ()


def test_a_kill_has_a_checkpoint_behind_it_and_strikes_again_after_the_resume() -> None:
    assert places("fault=sigkill") == [("sigkill", "after_optimizer", 30)] * 2
    assert places("fault=sigkill", in_proof=False) == [("sigkill", "after_optimizer", 30)]


def test_ranks_are_drawn_from_the_seed_or_named() -> None:
    drawn = [planned("fault=sigkill", f"fault.seed={seed}")[0].ranks for seed in range(8)]
    assert drawn[0] == planned("fault=sigkill", "fault.seed=0")[0].ranks
    assert len({rank for (rank,) in drawn}) >= 3
    assert planned("fault=sigkill", "fault.rank=3")[0].ranks == (3,)
    assert planned("fault=sigkill", "fault.rank=all")[0].ranks == (0, 1, 2, 3)
    assert planned("fault=sigkill", "fault.rank=all", "fault.point=before_commit")[0].ranks == (0,)


@pytest.mark.parametrize("kind", [kind for kind in FaultKind if kind not in (FaultKind.none, FaultKind.chaos)])
def test_every_kind_at_every_point_is_planned_within_the_run_or_refused(kind) -> None:
    for point in (None, *FaultPoint):
        if kind.is_storage and point not in (None, FaultPoint.writing):
            with pytest.raises(ConfigError, match="storage fails while it is written to"):
                FaultConfig(kind=kind, point=point)
            continue
        config = replace(roomy_config(), fault=FaultConfig(kind=kind, point=point))
        faults = plan_faults(config, world_size=4, in_proof=True)
        assert len(faults) >= 2, point
        assert [fault.index for fault in faults] == list(range(len(faults))), point
        assert all(fault.step is None or 1 <= fault.step <= 60 for fault in faults), point
        assert all(set(fault.ranks) <= {0, 1, 2, 3} for fault in faults), point


def test_a_silent_fault_is_followed_by_a_kill_that_lets_it_be_noticed() -> None:
    expected = [("bit_flip", "writing", 40), ("sigkill", "after_optimizer", 50), ("sigkill", "after_optimizer", 50)]
    assert places("fault=bit_flip") == expected
    assert places("fault=bit_flip", in_proof=False) == expected[:2]
    assert places("fault=lost_file")[0] == ("lost_file", "after_commit", 40)


def test_loading_is_reached_only_after_a_kill() -> None:
    assert [point for _, point, _ in places("fault=oom", "fault.point=loading")] == [
        "after_optimizer", "loading", "after_optimizer",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["fault.step=1"], [1, 2]),
        (["fault.step=60"], [60, 60]),
        (["checkpoint.interval_steps=100"], [30, 30]),
        (["fault.point=writing"], [40, 40]),
        (["fault.point=after_commit"], [40, 41]),
        (["train.steps=1"], [1, 1]),
        (["fault.more=[{kind: oom, step: 50, rank: 0}]"], [30, 50]),
        (["fault.more=[{kind: oom}]"], [30, 30]),
        (["fault.point=after_commit", "fault.more=[{kind: oom}, {kind: oom, point: writing}]"], [40, 42, 60]),
    ],
)
def test_steps_at_the_edges(overrides, expected) -> None:
    assert [step for _, _, step in places("fault=sigkill", *overrides)] == expected


def test_sigterm_goes_on_from_the_step_it_came_in() -> None:
    assert [step for _, _, step in places("fault=sigterm")] == [30, 32]


def test_stops_of_a_full_proof_lie_in_the_middle() -> None:
    assert stop_steps(config_of("proof=full")) == [30, 32]
    assert stop_steps(config_of("proof=full", "train.steps=2", "checkpoint.interval_steps=1")) == [2, 2]


def test_chaos_is_drawn_from_the_seed_with_the_mean_that_was_asked_for() -> None:
    job = ("fault=chaos", "train.steps=4000", "fault.mean_steps=8", "train.accumulate=2")
    faults = planned(*job)
    assert faults == planned(*job)
    assert faults != planned(*job, "fault.seed=1")
    assert 400 < len(faults) < 600
    steps = [fault.step for fault in faults]
    assert steps == sorted(steps)
    assert {fault.kind for fault in faults} == {
        FaultKind.sigkill, FaultKind.exception, FaultKind.oom, FaultKind.exit, FaultKind.sigterm,
    }  # fmt: skip
    assert {fault.point for fault in faults} >= {
        FaultPoint.writing,
        FaultPoint.mid_accumulation,
        FaultPoint.before_step,
    }


def test_one_fault_that_ends_the_run_is_armed_at_a_time_with_the_silent_ones_before_it() -> None:
    faults = planned("fault=bit_flip")
    assert [fault.index for fault in armed(faults, set())] == [0, 1]
    assert [fault.index for fault in armed(faults, {0, 1})] == [2]
    assert armed(faults, {0, 1, 2}) == []


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["fault=sigkill", "fault.point=staging"], ["fault.point=staging", "checkpoint=sync", "async"]),
        (["fault=sigkill", "fault.point=mid_accumulation"], ["mid_accumulation", "train.accumulate"]),
        (["fault=sigkill", "fault.point=removing"], ["removing", "checkpoint.keep_last"]),
        (["fault=sigkill", "fault.point=removing", "checkpoint.keep_last=9"], ["removing", "checkpoint.keep_last=9"]),
        (["fault=sigkill", "fault.point=writing", "fault.step=17"], ["fault.step=17", "20, 40, 60"]),
        (["fault=sigkill", "fault.step=61"], ["fault.step=61", "train.steps=60"]),
        (["fault=sigkill", "fault.rank=4"], ["fault.rank=4", "4 ranks"]),
        (["fault=bit_flip", "checkpoint.interval_steps=30"], ["bit_flip", "checkpoint.interval_steps"]),
        (["fault=sigkill", "fault.point=writing", "checkpoint=none"], ["checkpoint=none"]),
    ],
)
def test_what_can_never_fire_is_refused_with_the_way_out(overrides, words) -> None:
    with pytest.raises(ConfigError) as caught:
        planned(*overrides)
    for word in words:
        assert word in str(caught.value)
