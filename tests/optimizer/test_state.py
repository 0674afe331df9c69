"""The optimizer's state by name, on one rank."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from ckptrun.config.optimizer import AdafactorConfig, AdamConfig, AdamWConfig, MuonConfig, SGDConfig
from ckptrun.errors import InternalError, StateMismatchError, UnsupportedLeafError
from ckptrun.optimizer import OptimizerState, build_optimizer, parameter_groups
from tests.optimizer.tiny import DECAYED, MATRICES, bits, leaves, resume, store, tiny, train

CONFIGS = {
    "sgd": SGDConfig(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd_without_momentum": SGDConfig(lr=0.05, momentum=0.0),
    "adam": AdamConfig(amsgrad=True, weight_decay=0.01),
    "adamw": AdamWConfig(),
    "adamw_foreach": AdamWConfig(foreach=True),
    "adamw_fused": AdamWConfig(fused=True),
    "adafactor": AdafactorConfig(weight_decay=0.01),
    "muon": MuonConfig(),
}


def build(config=CONFIGS["adamw"], *, seed=0, dtype=torch.float32, names=lambda names: names):
    model = tiny(dtype, seed)
    parameters = {name: value for name, value in names(list(model.named_parameters()))}
    optimizer = build_optimizer(config, parameters, decayed=DECAYED, matrices=MATRICES)
    return model, optimizer, OptimizerState(optimizer, parameters)


def trained(config=CONFIGS["adamw"], *, steps=3, **options):
    model, optimizer, component = build(config, **options)
    train(model, optimizer, steps)
    return model, optimizer, component


def copy_weights(model, other):
    other.load_state_dict(copy.deepcopy(model.state_dict()))


def weights(model):
    return {name: value.detach().numpy().tobytes() for name, value in model.float().named_parameters()}


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_fresh_optimizer_gets_moments_and_rates_and_goes_on_with_the_same_bits(kind):
    config = CONFIGS[kind]
    model, optimizer, component = trained(config)
    optimizer.param_groups[0]["lr"] *= 0.5
    saved = store(component.state_dict())

    fresh_model, fresh, fresh_component = build(config, seed=1)
    resume(fresh_component, saved)
    assert bits(fresh_component.state_dict()) == bits(component.state_dict())
    copy_weights(model, fresh_model)
    train(model, optimizer, 2, first=3)
    train(fresh_model, fresh, 2, first=3)
    assert weights(model) == weights(fresh_model)
    assert bits(fresh_component.state_dict()) == bits(component.state_dict())


@pytest.mark.parametrize("kind", sorted(CONFIGS.keys() - {"sgd_without_momentum"}))
def test_every_parameter_with_a_gradient_and_no_other_has_moments(kind):
    _, _, component = trained(CONFIGS[kind])
    expected = {name for name, _ in tiny().named_parameters() if not name.startswith(("frozen", "unused"))}
    assert component.state_dict()["state"].keys() == expected


def test_the_template_of_a_fresh_optimizer_is_materialised():
    saved = store(trained()[2].state_dict())
    template = build()[2].template(saved)
    tensors = [leaf for leaf in leaves(template).values() if isinstance(leaf, torch.Tensor)]
    assert len(tensors) == 3 * 10
    assert not any(tensor.any() for tensor in tensors)


def test_gradients_that_are_there_already_do_not_empty_the_template():
    saved = store(trained()[2].state_dict())
    model, _, component = build()
    model(torch.ones(1, 6)).sum().backward()
    resume(component, saved)
    assert bits(component.state_dict()) == {
        leaf.path: bits({0: leaf.tensor()})[(0,)] if leaf.dtype else bits({0: leaf.value})[(0,)] for leaf in saved
    }


def test_moments_of_a_parameter_that_was_trained_and_then_frozen_are_kept():
    model, optimizer, component = build()
    train(model, optimizer, 2)
    model.freeze_later()
    train(model, optimizer, 2, first=2)
    saved = store(component.state_dict())

    fresh_model, fresh, fresh_component = build(seed=1)
    fresh_model.freeze_later()
    resume(fresh_component, saved)
    copy_weights(model, fresh_model)
    for one, other in ((model, optimizer), (fresh_model, fresh)):
        one.later.requires_grad_(True)
        train(one, other, 2, first=4)
    assert weights(model) == weights(fresh_model)
    assert fresh_component.state_dict()["state"]["later.weight"]["step"].item() == 4


def test_a_parameter_that_never_had_a_gradient_is_neither_saved_nor_asked_for():
    _, _, component = trained()
    saved = store(component.state_dict())
    assert not [leaf for leaf in saved if leaf.path[:2] == ("state", "unused.weight")]
    _, fresh, fresh_component = build()
    resume(fresh_component, saved)
    assert len(fresh.state) == 10


def test_moments_follow_the_name_not_the_position():
    _, _, component = trained()
    saved = store(component.state_dict())
    _, _, reversed_component = build(names=lambda names: reversed(names))
    resume(reversed_component, saved)
    assert bits(reversed_component.state_dict()) == bits(component.state_dict())


def test_the_state_is_live_and_filled_in_place():
    _, optimizer, component = trained()
    state = component.state_dict()["state"]
    for name, parameter in component._parameters.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            assert state[name][key] is value
    template = component.template(store(component.state_dict()))
    for path, leaf in leaves(template["state"]).items():
        assert leaf is state[path[0]][path[1]]


def test_two_optimizers_never_share_memory():
    _, _, component = trained()
    model, optimizer, other = build(seed=1)
    other.load_state_dict(component.state_dict())
    before = bits(component.state_dict())
    train(model, optimizer, 1, first=3)
    assert bits(component.state_dict()) == before
    assert bits(other.state_dict()) != before


def test_loading_twice_is_as_loading_once():
    _, _, component = trained()
    saved = store(component.state_dict())
    _, _, other = build()
    for _ in range(2):
        resume(other, saved)
        assert bits(other.state_dict()) == bits(component.state_dict())


def test_after_a_load_the_optimizer_has_the_saved_keys_and_no_others():
    model, optimizer, component = build()
    saved = store(component.state_dict())
    train(model, optimizer, 1)
    resume(component, saved)
    assert component.state_dict()["state"] == {}
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("kind", ["adamw", "adamw_fused"])
def test_step_counts_keep_dtype_and_place_and_count_past_256_with_bf16_parameters(kind):
    _, optimizer, component = trained(CONFIGS[kind], dtype=torch.bfloat16)
    for value in optimizer.state.values():
        value["step"].fill_(256)
    saved = store(component.state_dict())
    fresh_model, fresh, fresh_component = build(CONFIGS[kind], dtype=torch.bfloat16)
    resume(fresh_component, saved)
    train(fresh_model, fresh, 1)
    steps = {(value["step"].dtype, value["step"].shape, value["step"].item()) for value in fresh.state.values()}
    assert steps == {(torch.float32, torch.Size([]), 257.0)}


@pytest.mark.parametrize("done", [0, 1])
def test_moments_keep_their_dtype_whatever_the_parameters_have(done):
    # An fp32 checkpoint into a bf16 run, fresh or not: nothing is cast on the way.
    _, _, component = trained()
    saved = store(component.state_dict())
    _, _, other = trained(dtype=torch.bfloat16, steps=done)
    resume(other, saved)
    assert bits(other.state_dict()["state"]) == bits(component.state_dict()["state"])


class GroupStepOptimizer(Optimizer):
    """Counts steps in the group, and keeps plain state too."""

    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr, "step": 0})
        for group in self.param_groups:
            group["history"] = []

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            group["step"] += 1
            group["history"].append(group["step"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    state = self.state[parameter]
                    state["count"] = state.get("count", 0) + 1
                    state.setdefault("counts", []).append(state["count"])
                    parameter.sub_(parameter.grad, alpha=group["lr"] / group["step"])


def custom(seed=0):
    model = tiny(seed=seed)
    parameters = dict(model.named_parameters())
    groups = parameter_groups(parameters, decayed=DECAYED, weight_decay=0.1)
    optimizer = GroupStepOptimizer(groups)
    return model, optimizer, OptimizerState(optimizer, parameters)


def test_counters_of_groups_and_plain_state_of_a_users_optimizer_are_saved():
    model, optimizer, component = custom()
    train(model, optimizer, 3)
    state = component.state_dict()
    saved = store(state)
    assert state["param_groups"]["decay"]["step"] == 3
    fresh_model, fresh, fresh_component = custom(seed=1)
    resume(fresh_component, saved)
    copy_weights(model, fresh_model)
    train(model, optimizer, 1, first=3)
    train(fresh_model, fresh, 1, first=3)
    assert weights(model) == weights(fresh_model)
    assert fresh.state[fresh_model.row]["count"] == 4
    # The lists went on in the optimizer, not in what was saved.
    assert state["state"]["row"]["counts"] == [1, 2, 3]
    assert fresh.state[fresh_model.row]["counts"] == [1, 2, 3, 4]
    assert state["param_groups"]["decay"]["history"] == [1, 2, 3]
    assert fresh.param_groups[0]["history"] == [1, 2, 3, 4]


def test_plain_state_is_not_shared_between_optimizers():
    model, optimizer, component = custom()
    train(model, optimizer, 1)
    other_model, other_optimizer, other = custom(seed=1)
    other.load_state_dict({**component.state_dict(), "state": {"row": dict(optimizer.state[model.row])}})
    train(other_model, other_optimizer, 1)
    assert optimizer.state[model.row]["counts"] == [1]
    assert other_optimizer.state[other_model.row]["counts"] == [1, 2]


def test_a_learning_rate_that_is_a_tensor_is_filled_in_place():
    def make(lr):
        weight = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.AdamW([{"params": [weight], "name": "all"}], lr=torch.tensor(lr))
        return optimizer, OptimizerState(optimizer, {"weight": weight})

    _, component = make(0.3)
    optimizer, other = make(0.7)
    rate = optimizer.param_groups[0]["lr"]
    resume(other, store(component.state_dict()))
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == torch.tensor(0.3).item()
    _, third = make(0.9)
    other.load_state_dict(third.state_dict())
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == torch.tensor(0.9).item()


def test_groups_without_a_name_are_numbered():
    weight, bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([{"params": [weight]}, {"params": [bias]}], lr=0.1)
    state = OptimizerState(optimizer, {"weight": weight, "bias": bias}).state_dict()
    assert {name: group["params"] for name, group in state["param_groups"].items()} == {
        "group_0": ["weight"],
        "group_1": ["bias"],
    }


def test_torch_groups_of_one_name_are_one_group_and_loaded_alike():
    def make(lr):
        weight, bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        optimizer = torch.optim.SGD([{"params": [bias], "name": "one"}, {"params": [weight], "name": "one"}], lr=lr)
        return optimizer, OptimizerState(optimizer, {"weight": weight, "bias": bias})

    optimizer, component = make(0.25)
    other_optimizer, other = make(0.5)
    resume(other, store(component.state_dict()))
    assert [group["lr"] for group in other_optimizer.param_groups] == [0.25, 0.25]
    assert component.state_dict()["param_groups"]["one"]["params"] == ["bias", "weight"]
    optimizer.param_groups[1]["lr"] = 0.1
    with pytest.raises(UnsupportedLeafError, match=r"param_groups\.one\.lr' is 0\.25 .* and 0\.1"):
        component.state_dict()


def without(saved, *path):
    return [leaf for leaf in saved if leaf.path[: len(path)] != path]


@pytest.mark.parametrize(
    ("change", "leaf", "text"),
    [
        (lambda saved: without(saved, "param_groups", "no_decay"), "param_groups.no_decay", "groups differ"),
        (lambda saved: without(saved, "param_groups", "decay", "lr"), "param_groups.decay.lr", "options differ"),
        (lambda saved: without(saved, "layouts"), "layouts", "does not fit"),
    ],
)
def test_a_checkpoint_that_lacks_something_is_refused_by_name(change, leaf, text):
    saved = change(store(trained()[2].state_dict()))
    _, _, component = trained(steps=1)
    before = bits(component.state_dict())
    with pytest.raises(StateMismatchError, match=text) as caught:
        component.template(saved)
    assert f"optimizer.{leaf}" in caught.value.leaves
    assert bits(component.state_dict()) == before


def test_an_option_that_this_run_does_not_have_is_refused_by_name():
    _, optimizer, component = trained()
    optimizer.param_groups[0]["novel"] = 3
    with pytest.raises(
        StateMismatchError, match=r"only in the checkpoint: \['novel'\].*exclude=\[optimizer\]"
    ) as caught:
        build()[2].load_state_dict(component.state_dict())
    assert caught.value.leaves == ("optimizer.param_groups.decay.novel",)


def test_an_option_that_became_a_tensor_is_refused_by_name():
    _, optimizer, component = trained()
    optimizer.param_groups[0]["lr"] = torch.tensor(0.1)
    with pytest.raises(StateMismatchError, match="options that are tensors") as caught:
        build()[2].load_state_dict(component.state_dict())
    assert caught.value.leaves == ("optimizer.param_groups.decay.lr",)


def test_parameters_in_another_group_are_refused_by_name():
    def make(decayed):
        weight, bias = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        parameters = {"weight": weight, "bias": bias, "scale": nn.Parameter(torch.ones(2))}
        groups = parameter_groups(parameters, decayed=decayed, weight_decay=0.1)
        return OptimizerState(torch.optim.SGD(groups, lr=0.1), parameters)

    state = make({"weight"}).state_dict()
    with pytest.raises(
        StateMismatchError, match=r"\.decay: parameters differ\. Only in this run: \['bias'\]"
    ) as caught:
        make({"weight", "bias"}).load_state_dict(state)
    assert caught.value.leaves == ("optimizer.param_groups.decay.bias",)


def test_state_of_an_unknown_parameter_is_refused_by_name():
    state = trained()[2].state_dict()
    state["state"]["ghost"] = dict(state["state"]["row"])
    with pytest.raises(StateMismatchError) as caught:
        build()[2].load_state_dict(state)
    assert caught.value.leaves == ("optimizer.state.ghost",)


def test_a_moment_of_another_shape_is_refused_by_name_and_nothing_is_changed():
    saved = store(trained()[2].state_dict())
    for leaf in saved:
        if leaf.path == ("state", "row", "exp_avg"):
            leaf.shape = (1, 5)
    _, _, component = trained(steps=1)
    before = bits(component.state_dict())
    with pytest.raises(
        StateMismatchError, match=r"\(1, 5\) in the checkpoint, but its parameter has shape \(1, 4\)"
    ) as caught:
        component.template(saved)
    assert caught.value.leaves == ("optimizer.state.row.exp_avg",)
    assert bits(component.state_dict()) == before


def test_an_optimizer_that_keeps_lists_of_tensors_is_refused_by_name():
    weight = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.LBFGS([weight])

    def loss():
        optimizer.zero_grad()
        value = weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with pytest.raises(UnsupportedLeafError, match=r"optimizer\.state\.weight\.al' is a list"):
        OptimizerState(optimizer, {"weight": weight}).state_dict()


def test_state_that_belongs_to_no_parameter_is_refused():
    _, optimizer, component = build()
    optimizer.state["global_step"] = 3
    with pytest.raises(UnsupportedLeafError, match="global_step"):
        component.state_dict()


def test_a_state_dict_of_a_users_optimizer_with_more_in_it_is_refused():
    class Hidden(torch.optim.SGD):
        def state_dict(self):
            return {**super().state_dict(), "secret": 1}

    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(UnsupportedLeafError, match="secret"):
        OptimizerState(Hidden([weight], lr=0.1), {"weight": weight}).state_dict()


def test_what_else_its_state_dict_holds_is_named_where_it_leaves_the_groups_out():
    class Bare(torch.optim.SGD):
        def state_dict(self):
            return {"secret": 1}

    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(UnsupportedLeafError, match="secret"):
        OptimizerState(Bare([weight], lr=0.1), {"weight": weight}).state_dict()


def test_an_option_that_only_its_own_state_dict_knows_is_refused():
    """It would be read from the live groups, and not be there: its optimizer would be called faulty."""

    class Counts(torch.optim.SGD):
        def state_dict(self):
            told = super().state_dict()
            return {**told, "param_groups": [{**group, "t": 1} for group in told["param_groups"]]}

    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(UnsupportedLeafError, match=r"Counts keeps state .*param_groups\.t"):
        OptimizerState(Counts([weight], lr=0.1), {"weight": weight}).state_dict()

    class Hooked(torch.optim.SGD):
        pass

    optimizer = Hooked([weight], lr=0.1)
    optimizer.register_state_dict_post_hook(lambda self, told: told["param_groups"][0].update(t=1))
    with pytest.raises(UnsupportedLeafError, match=r"Hooked keeps state .*param_groups\.t"):
        OptimizerState(optimizer, {"weight": weight}).state_dict()


def test_dicts_in_state_or_options_are_refused_by_name():
    _, optimizer, component = trained()
    optimizer.param_groups[0]["extra"] = {"a": 1}
    with pytest.raises(UnsupportedLeafError, match=r"param_groups\.decay\.extra"):
        component.state_dict()
    del optimizer.param_groups[0]["extra"]
    next(iter(optimizer.state.values()))["extra"] = {"a": 1}
    with pytest.raises(UnsupportedLeafError, match=r"state\..*\.extra"):
        component.state_dict()


def test_a_parameter_without_a_name_is_a_bug():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(InternalError, match="name"):
        OptimizerState(torch.optim.SGD([weight], lr=0.1), {}).state_dict()


def test_layouts_name_what_does_not_lie_as_its_parameter_does():
    assert trained()[2].state_dict()["layouts"] == {}
    layouts = trained(CONFIGS["adafactor"])[2].state_dict()["layouts"]
    assert layouts["kernel"] == {"row_var": "device", "col_var": "device"}
    assert "norm.weight" not in layouts


class Halving(torch.optim.Adam):
    """Its own load keeps moments in half precision."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for values in self.state.values():
            values["exp_avg"] = values["exp_avg"].half().float()


def _hooked(optimizer: Optimizer) -> Optimizer:
    optimizer.register_load_state_dict_post_hook(lambda opt: [v["exp_avg"].zero_() for v in opt.state.values()])
    return optimizer


@pytest.mark.parametrize("make", [Halving, lambda groups: _hooked(torch.optim.Adam(groups))], ids=["override", "hook"])
def test_load_code_of_the_users_is_called_and_what_it_changes_shows(make):
    components = []
    for seed in (0, 1):
        model = tiny(torch.float32, seed)
        parameters = dict(model.named_parameters())
        optimizer = make(parameter_groups(parameters, decayed=DECAYED, weight_decay=0.0))
        if seed == 0:
            train(model, optimizer, 3)
        components.append(OptimizerState(optimizer, parameters))
    saved = store(components[0].state_dict())
    resume(components[1], saved)
    was, got = (bits(component.state_dict()) for component in components)
    assert {name for name in was if was[name] != got[name]} == {name for name in was if name[-1] == "exp_avg"} != set()
