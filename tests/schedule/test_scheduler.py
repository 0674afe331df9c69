import pytest
import torch
from torch.optim import SGD

from ckptrun.config.schedule import ConstantConfig, CosineConfig, MultiStepConfig, WSDConfig
from ckptrun.errors import StateMismatchError
from ckptrun.schedule import build_schedule
from ckptrun.values import canonical_bytes

CONFIGS = [
    ConstantConfig(),
    CosineConfig(warmup_steps=3),
    WSDConfig(warmup_steps=2, decay_steps=4),
    MultiStepConfig(milestones=[5, 9], factor=0.3),
]
STEPS = 12


def optimizer(names=("decay", "no_decay"), lrs=(0.3, 0.07)):
    groups = [
        {"params": [torch.nn.Parameter(torch.ones(1))], "lr": lr, "name": name}
        for name, lr in zip(names, lrs, strict=True)
    ]
    return SGD(groups)


def rates(found):
    return [float(group["lr"]).hex() for group in found.param_groups]


def step(found, schedule, count=1):
    seen = []
    for _ in range(count):
        found.step()
        schedule.step()
        seen.append(rates(found))
    return seen


def load_rates(found, saved):
    for group, (lr, initial) in zip(found.param_groups, saved, strict=True):
        group["lr"], group["initial_lr"] = lr, initial


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("done", [0, 4, 5, 8])
def test_after_a_load_the_rates_go_on_with_the_same_bits(config, done):
    first = optimizer()
    schedule = build_schedule(config, first, steps=STEPS)
    step(first, schedule, done)
    saved = schedule.state_dict(), [(group["lr"], group["initial_lr"]) for group in first.param_groups]
    expected = [rates(first), *step(first, schedule, STEPS - done)]

    second = optimizer(lrs=(9.0, 8.0))
    fresh = build_schedule(config, second, steps=STEPS)
    load_rates(second, saved[1])
    fresh.load_state_dict(saved[0])
    assert [rates(second), *step(second, fresh, STEPS - done)] == expected


def test_loading_takes_no_step_and_twice_is_as_once():
    first = optimizer()
    schedule = build_schedule(CONFIGS[1], first, steps=STEPS)
    step(first, schedule, 5)
    state = schedule.state_dict()
    second = optimizer()
    fresh = build_schedule(CONFIGS[1], second, steps=STEPS)
    before = rates(second)
    for _ in range(2):
        fresh.load_state_dict(state)
        assert canonical_bytes(fresh.state_dict(), name="s") == canonical_bytes(state, name="s")
        assert rates(second) == before
        assert fresh.get_last_lr() == schedule.get_last_lr()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("done", [0, 5])
def test_applying_the_curve_after_a_load_changes_no_bit(config, done):
    found = optimizer()
    schedule = build_schedule(config, found, steps=STEPS)
    step(found, schedule, done)
    before = rates(found), schedule.state_dict()
    schedule.apply()
    assert (rates(found), schedule.state_dict()) == before


def test_a_run_made_longer_goes_on_with_the_rate_of_the_longer_curve():
    short, long = CosineConfig(warmup_steps=0, final_share=0.0), optimizer()
    first = optimizer()
    schedule = build_schedule(short, first, steps=4)
    step(first, schedule, 4)
    assert rates(first) == [(0.0).hex(), (0.0).hex()]
    expected = build_schedule(short, long, steps=9)
    step(long, expected, 4)

    load_rates(first, [(0.0, group["initial_lr"]) for group in first.param_groups])
    longer = build_schedule(short, first, steps=9)
    load_rates(first, [(0.0, group["initial_lr"]) for group in first.param_groups])
    longer.load_state_dict(schedule.state_dict())
    longer.apply()
    assert rates(first) == rates(long)
    assert longer.state_dict() == expected.state_dict()


def test_the_state_is_plain_and_does_not_change_when_the_schedule_goes_on():
    found = optimizer()
    schedule = build_schedule(CONFIGS[1], found, steps=STEPS)
    state = schedule.state_dict()
    before = canonical_bytes(state, name="schedule")
    step(found, schedule)
    assert canonical_bytes(state, name="schedule") == before


def test_groups_that_a_mesh_splits_are_one_in_the_state():
    names, lrs = ("decay", "decay", "no_decay"), (0.3, 0.3, 0.07)
    split = optimizer(names, lrs)
    schedule = build_schedule(CONFIGS[1], split, steps=STEPS)
    step(split, schedule, 4)
    whole = optimizer()
    other = build_schedule(CONFIGS[1], whole, steps=STEPS)
    other.load_state_dict(schedule.state_dict())
    expected = step(split, schedule, 3)
    assert [[one[0], one[2]] for one in expected] == step(whole, other, 3)


def test_groups_without_a_name_are_numbered():
    found = SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
    assert build_schedule(ConstantConfig(), found, steps=2).state_dict()["base_lrs"] == {"group_0": 0.5}


def test_a_rate_that_is_a_tensor_stays_the_same_tensor():
    def build():
        found = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], lr=torch.tensor(0.3))
        return found, build_schedule(CONFIGS[1], found, steps=STEPS)

    first, schedule = build()
    step(first, schedule, 4)
    second, fresh = build()
    lr = second.param_groups[0]["lr"]
    lr.copy_(first.param_groups[0]["lr"])
    fresh.load_state_dict(schedule.state_dict())
    assert step(second, fresh, 3) == step(first, schedule, 3)
    assert second.param_groups[0]["lr"] is lr
    # A product of a float with a share is rounded once, one of a tensor twice.
    assert [type(rate) for rate in fresh.base_lrs] == [torch.Tensor]


def test_a_skipped_first_step_of_the_optimizer_is_no_reason_to_warn():
    # Warnings are errors here.
    build_schedule(CONFIGS[1], optimizer(), steps=STEPS).step()


def test_a_state_of_other_groups_is_refused_and_changes_nothing():
    state = build_schedule(CONFIGS[0], optimizer(("decay", "other")), steps=STEPS).state_dict()
    schedule = build_schedule(CONFIGS[0], optimizer(), steps=STEPS)
    before = schedule.state_dict()
    with pytest.raises(StateMismatchError, match=r"'decay', 'no_decay'.*exclude=\[schedule\]") as caught:
        schedule.load_state_dict(state)
    assert caught.value.leaves == ("schedule.base_lrs", "schedule.last_lrs")
    assert schedule.state_dict() == before


def test_a_state_of_another_kind_of_scheduler_is_refused():
    found = optimizer()
    state = torch.optim.lr_scheduler.StepLR(found, 3).state_dict()
    with pytest.raises(StateMismatchError, match="not of this kind") as caught:
        build_schedule(CONFIGS[0], optimizer(), steps=STEPS).load_state_dict(state)
    assert "schedule.step_size" in caught.value.leaves
