"""A fault is planned among the ranks, and in the steps, of the start in which it strikes."""

import pytest

from ckptrun.config.fault import FaultPoint
from ckptrun.errors import ConfigError
from ckptrun.fault import plan_faults
from ckptrun.proof.preflight import check_proof
from tests.support.configs import config_of

MIDDLE = ("fault=sigkill", "fault.point=mid_accumulation", "train.micro_batch=2")
DDP = ("parallelism=ddp", "launch.nproc=4")


def test_accumulation_that_comes_from_the_global_batch_counts() -> None:
    config = config_of(*MIDDLE, *DDP, "train.global_batch=16")
    points = {fault.point for fault in plan_faults(config, world_size=4, in_proof=True)}
    assert points == {FaultPoint.mid_accumulation}


def test_a_global_batch_that_is_one_pass_has_no_middle() -> None:
    config = config_of(*MIDDLE, *DDP, "train.global_batch=8")
    with pytest.raises(ConfigError, match=r"mid_accumulation never fires: on 4 ranks a step is one pass"):
        plan_faults(config, world_size=4, in_proof=True)


def test_chaos_draws_the_middle_of_an_accumulation_only_where_there_is_one() -> None:
    chaos = (
        "fault=chaos",
        "fault.mean_steps=2",
        "train.micro_batch=2",
        "train.steps=400",
        "checkpoint.interval_steps=5",
    )
    for batch, expected in ((8, False), (16, True)):
        config = config_of(*chaos, *DDP, f"train.global_batch={batch}")
        drawn = {fault.point for fault in plan_faults(config, world_size=4, in_proof=False)}
        assert (FaultPoint.mid_accumulation in drawn) == expected


def test_what_strikes_after_a_resume_on_another_mesh_is_planned_for_that_mesh() -> None:
    reshaped = ("parallelism=ddp", "launch.nproc=2", "proof.resume_nproc=4", "train.global_batch=8")
    with pytest.raises(ConfigError, match="on 4 ranks a step is one pass"):
        check_proof(config_of(*MIDDLE, *reshaped))
    with pytest.raises(ConfigError, match="there are only 1 ranks"):
        check_proof(config_of("fault=sigkill", "fault.rank=1", *reshaped[:2], "proof.resume_nproc=1"))
