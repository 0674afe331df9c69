import copy

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ckptrun.config.optimizer import AdafactorConfig, AdamConfig, AdamWConfig, MuonConfig, OptimizerConfig, SGDConfig
from ckptrun.errors import InternalError
from ckptrun.optimizer import JoinedOptimizer, build_optimizer, parameter_groups
from tests.optimizer.tiny import DECAYED, MATRICES, tiny, train


def build(config, model):
    return build_optimizer(config, dict(model.named_parameters()), decayed=DECAYED, matrices=MATRICES)


def names_in(model, group):
    return {name for name, value in model.named_parameters() for other in group["params"] if value is other}


def weights(model):
    return [value.detach().numpy().tobytes() for value in model.parameters()]


def test_groups_hold_every_parameter_once_frozen_ones_too():
    model = tiny()
    decay, rest = parameter_groups(dict(model.named_parameters()), decayed=DECAYED, weight_decay=0.5)
    assert (decay["name"], decay["weight_decay"]) == ("decay", 0.5)
    assert (rest["name"], rest["weight_decay"]) == ("no_decay", 0.0)
    assert names_in(model, decay) == DECAYED
    assert names_in(model, rest) == {name for name, _ in model.named_parameters()} - DECAYED


def test_a_group_without_parameters_is_left_out():
    (group,) = parameter_groups({"bias": nn.Parameter(torch.ones(1))}, decayed=(), weight_decay=0.5)
    assert group["name"] == "no_decay"


@pytest.mark.parametrize(
    ("config", "kind", "options"),
    [
        (SGDConfig(lr=0.1, momentum=0.5, nesterov=True), torch.optim.SGD, {"momentum": 0.5, "nesterov": True}),
        (AdamConfig(beta1=0.8, beta2=0.7, amsgrad=True), torch.optim.Adam, {"betas": (0.8, 0.7), "amsgrad": True}),
        (AdamWConfig(eps=1e-6, fused=True), torch.optim.AdamW, {"eps": 1e-6, "fused": True}),
        (AdafactorConfig(lr=0.3, foreach=True), torch.optim.Adafactor, {"lr": 0.3, "foreach": True}),
    ],
)
def test_options_reach_the_optimizer(config, kind, options):
    optimizer = build(config, tiny())
    assert type(optimizer) is kind
    for group in optimizer.param_groups:
        assert {key: group[key] for key in options} == options
        assert group["weight_decay"] == (config.weight_decay if group["name"] == "decay" else 0.0)


def test_muon_takes_hidden_matrices_and_adamw_the_rest():
    model = tiny()
    optimizer = build(MuonConfig(lr=0.02, weight_decay=0.3, adamw_lr=0.001), model)
    groups = {group["name"]: group for group in optimizer.param_groups}
    # The kernel is named as a matrix, but has four dims.
    assert names_in(model, groups["muon"]) == MATRICES - {"kernel"}
    assert names_in(model, groups["adamw_decay"]) == {"kernel", "row", "unused.weight"}
    rates = {name: (group["lr"], group["weight_decay"]) for name, group in groups.items()}
    assert rates == {"muon": (0.02, 0.3), "adamw_decay": (0.001, 0.3), "adamw_no_decay": (0.001, 0.0)}


def test_muon_joined_with_adamw_computes_what_both_compute_apart():
    config = MuonConfig(lr=0.02, momentum=0.9, adamw_lr=0.01)
    joined, apart = tiny(), tiny()
    train(joined, build(config, joined), 3)
    named = dict(apart.named_parameters())
    matrices = [value for name, value in named.items() if name in MATRICES and value.ndim == 2]
    decayed = [value for name, value in named.items() if name in DECAYED and not (name in MATRICES and value.ndim == 2)]
    rest = [value for name, value in named.items() if name not in DECAYED]
    optimizers = [
        torch.optim.Muon(matrices, lr=0.02, momentum=0.9, weight_decay=0.1),
        torch.optim.AdamW(decayed, lr=0.01, betas=(0.9, 0.95), weight_decay=0.1),
        torch.optim.AdamW(rest, lr=0.01, betas=(0.9, 0.95), weight_decay=0.0),
    ]

    class Both:
        def zero_grad(self):
            apart.zero_grad()

        def step(self):
            for optimizer in optimizers:
                optimizer.step()

    train(apart, Both(), 3)
    assert weights(joined) == weights(apart)


def test_a_schedule_changes_the_rates_of_all_joined_optimizers():
    model = tiny()
    optimizer = build(MuonConfig(lr=0.02, adamw_lr=0.01), model)
    schedule = LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.0)
    train(model, optimizer, 1)
    schedule.step()
    before = weights(model)
    train(model, optimizer, 1, first=1)
    assert weights(model) == before


def test_joined_optimizers_survive_torchs_own_state_dict():
    first, second = tiny(), tiny()
    optimizer = build(MuonConfig(), first)
    train(first, optimizer, 2)
    other = build(MuonConfig(), second)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(first, optimizer, 2, first=2)
    train(second, other, 2, first=2)
    assert weights(first) == weights(second)
    for group in other.param_groups:
        group["lr"] = 0.0
    train(second, other, 1, first=4)
    assert weights(first) == weights(second)


def test_a_closure_is_called_once_with_gradients_enabled():
    weight = nn.Parameter(torch.ones(2))
    optimizer = JoinedOptimizer([torch.optim.SGD([weight], lr=0.1)])
    calls = []

    def closure():
        calls.append(torch.is_grad_enabled())
        loss = weight.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert calls == [True]


def test_a_model_without_matrices_runs_under_muon():
    model = nn.LayerNorm(6)
    optimizer = build_optimizer(MuonConfig(), dict(model.named_parameters()), decayed=(), matrices=())
    train(model, optimizer, 1)
    assert {group["name"] for group in optimizer.param_groups} == {"adamw_no_decay"}


def test_an_unknown_config_is_an_error():
    with pytest.raises(InternalError, match="OptimizerConfig"):
        build(OptimizerConfig(), tiny())
