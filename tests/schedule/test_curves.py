import pytest

from ckptrun.config.schedule import ConstantConfig, CosineConfig, MultiStepConfig, ScheduleConfig, WSDConfig
from ckptrun.errors import InternalError
from ckptrun.schedule import curve


def shares(config, steps, beyond=0):
    share = curve(config, steps=steps)
    return [share(step) for step in range(steps + beyond)]


def test_constant_is_the_peak_at_every_step():
    assert shares(ConstantConfig(), 4, beyond=2) == [1.0] * 6


def test_cosine_warms_up_linearly_and_ends_at_the_final_share():
    found = shares(CosineConfig(warmup_steps=3, final_share=0.25), 12)
    assert found[:4] == [0.25, 0.5, 0.75, 1.0]
    assert found[3:] == sorted(found[3:], reverse=True)
    assert len(set(found[3:])) == 9
    assert found[7] == 0.25 + 0.75 * 0.5
    assert found[-1] == 0.25


def test_cosine_without_warm_up_starts_at_the_peak():
    assert shares(CosineConfig(warmup_steps=0, final_share=0.0), 3) == pytest.approx([1.0, 0.5, 0.0])


def test_wsd_is_flat_between_warm_up_and_decay():
    found = shares(WSDConfig(warmup_steps=1, decay_steps=4, final_share=0.0), 10)
    assert found == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]


def test_multistep_changes_at_the_milestones():
    assert shares(MultiStepConfig(milestones=[2, 4], factor=0.5), 6) == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(
    "config",
    [CosineConfig(warmup_steps=2, final_share=0.125), WSDConfig(warmup_steps=2, decay_steps=3, final_share=0.125)],
)
def test_steps_past_the_end_keep_the_last_share(config):
    assert shares(config, 8, beyond=3)[-4:] == [0.125] * 4


@pytest.mark.parametrize("config", [CosineConfig(warmup_steps=5), WSDConfig(warmup_steps=5, decay_steps=10)])
@pytest.mark.parametrize("steps", [1, 3, 5, 6])
def test_a_run_too_short_for_warm_up_and_decay_still_has_a_rate(config, steps):
    assert all(0 < share <= 1 for share in shares(config, steps))


def test_an_unknown_kind_is_an_error():
    with pytest.raises(InternalError, match="ScheduleConfig"):
        curve(ScheduleConfig(), steps=3)
