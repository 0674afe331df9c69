"""Group D: optimizer state and precision."""

import torch
from torch import Tensor, nn

from ckptrun.checkpoint import load as load_module
from ckptrun.optimizer import OptimizerState
from tests.zoo.planted.seam import Bug, local, wrap


def _ignore_extra_leaves() -> None:
    """What ``dcp.load`` does: what the template lacks is not read, and nobody is told."""

    @wrap(load_module, "_refuse")
    def report(original, what, *rest):
        if "place" not in what:
            original(what, *rest)


class FreshTemplate(Bug):
    """A fresh optimizer has no moments to fill, and the loader leaves out what has no place."""

    def plant(self) -> None:
        _ignore_extra_leaves()

        @wrap(OptimizerState, "template")
        def template(original, optimizer, saved):
            return {"param_groups": optimizer.state_dict()["param_groups"]}

        @wrap(OptimizerState, "load_state_dict")
        def load(original, optimizer, state):
            original(optimizer, {"state": {}, "layouts": {}, **state})


class EmptyTemplateIsRefused(Bug):
    """The same with a strict loader."""

    def plant(self) -> None:
        @wrap(OptimizerState, "template")
        def template(original, optimizer, saved):
            return optimizer.state_dict()


class MomentsZeroed(Bug):
    """First moments are zero after the load."""

    def plant(self) -> None:
        @wrap(OptimizerState, "load_state_dict")
        def load(original, optimizer, state):
            original(optimizer, state)
            for values in optimizer._optimizer.state.values():
                local(values["exp_avg"]).zero_()


class FrozenMomentsDropped(Bug):
    """Saving goes over the parameters that are trained just now."""

    def plant(self) -> None:
        @wrap(OptimizerState, "_read_state")
        def read(original, optimizer):
            trained = {name for name, value in optimizer._parameters.items() if value.requires_grad}
            return {name: values for name, values in original(optimizer).items() if name in trained}


class MadeForUnused(Bug):
    """Moments are made for every parameter before a load, for those too that never had a gradient."""

    def plant(self) -> None:
        @wrap(OptimizerState, "template")
        def template(original, optimizer, saved):
            state = original(optimizer, saved)
            for name, parameter in optimizer._parameters.items():
                state["state"].setdefault(name, {"step": torch.zeros(()), "exp_avg": torch.zeros_like(parameter)})
            return state


class OtherOrder(Bug):
    """State by position, and positions from a set: after a load two parameters of one shape have changed places."""

    def plant(self, one: str, other: str) -> None:
        done = set()

        @wrap(OptimizerState, "template")
        def template(original, optimizer, saved):
            if optimizer not in done:
                done.add(optimizer)
                names = optimizer._parameters
                names[one], names[other] = names[other], names[one]
                optimizer._names = {id(parameter): name for name, parameter in names.items()}
            return original(optimizer, saved)


class MomentsSwapped(Bug):
    """Moments are handed out by position, and two parameters of one shape have changed places."""

    def plant(self, one: str, other: str) -> None:
        @wrap(OptimizerState, "load_state_dict")
        def load(original, optimizer, state):
            original(optimizer, state)
            first, second = (optimizer._optimizer.state[optimizer._parameters[name]] for name in (one, other))
            kept = local(first["exp_avg"]).clone()
            local(first["exp_avg"]).copy_(local(second["exp_avg"]))
            local(second["exp_avg"]).copy_(kept)


class StepCast(Bug):
    """The step counter is moved to the dtype of the parameter, and it is bfloat16."""

    def plant(self) -> None:
        @wrap(OptimizerState, "load_state_dict")
        def load(original, optimizer, state):
            original(optimizer, state)
            for values in optimizer._optimizer.state.values():
                values["step"] = values["step"].to(torch.bfloat16)


class NeitherSavedNorLoaded(Bug):
    """A flag is wrong for one combination of settings."""

    def plant(self) -> None:
        @wrap(OptimizerState, "_read_state")
        def read(original, optimizer):
            return {}


class CastAtLoad(Bug):
    """Read into a bfloat16 template, and copied into fp32 parameters."""

    def plant(self) -> None:
        @wrap(load_module, "_read")
        def read(original, matched, *rest, **named):
            original(matched, *rest, **named)
            for path, value in matched.items():
                if path[0] == "model" and isinstance(value, Tensor) and value.is_floating_point():
                    local(value).copy_(local(value).bfloat16().float())


class OneOfTwoSkipped(Bug):
    """Of two optimizers in one, the state of the second is not loaded."""

    def plant(self) -> None:
        @wrap(OptimizerState, "load_state_dict")
        def load(original, optimizer, state):
            original(optimizer, state)
            for values in optimizer._optimizer.state.values():
                if "exp_avg" in values:
                    local(values["exp_avg"]).zero_()


class OtherKeys(Bug):
    """Saved under flat keys, looked for under nested ones."""

    def plant(self) -> None:
        @wrap(OptimizerState, "template")
        def template(original, optimizer, saved):
            state = original(optimizer, saved)
            return {**state, "state": {"parameters": state["state"]}}


class MastersOfItsOwn(torch.optim.SGD):
    """Trains copies of the parameters, which a load does not reach, and overwrites the parameters with them."""

    def __init__(self, params, lr) -> None:
        super().__init__(params, lr=lr, momentum=0.9)
        self._masters = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        for group, masters in zip(self.param_groups, self._masters, strict=True):
            for p, master in zip(group["params"], masters, strict=True):
                if p.grad is not None:
                    master.sub_(p.grad, alpha=group["lr"])
                    p.copy_(master)


class CountsInGroups(torch.optim.Optimizer):
    """Steps by the sign, with a share that depends on the step counted in each group. Sound by itself."""

    def __init__(self, params, lr) -> None:
        super().__init__(params, {"lr": lr, "k": 0})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad.sign(), alpha=group["lr"] / group["k"])


class Thawing(nn.Module):
    """Freezes its first layer from the second step to the sixth; a buffer counts. Sound by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        for parameter in self.first.parameters():
            parameter.requires_grad_(not 2 < int(self.calls) < 7)
        return self.last(torch.relu(self.first(x)))


class Unused(nn.Module):
    """Has a parameter that never gets a gradient. Sound by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.never = nn.Linear(8, 8), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)
