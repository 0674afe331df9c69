"""What the ranks do in the distributed tests of the optimizer. Everything here returns plain, picklable results."""

import warnings

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, ShardingStrategy, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ckptrun.config.optimizer import AdafactorConfig, AdamWConfig, MuonConfig
from ckptrun.errors import CheckpointError
from ckptrun.optimizer import OptimizerState, build_optimizer
from ckptrun.optimizer.disjoint import gather_whole, own_box
from tests.optimizer.tiny import DECAYED, MATRICES, Block, Stored, bits, local, raw, resume, store, tiny, train

CONFIGS = {
    "adamw": AdamWConfig(),
    "adamw_foreach": AdamWConfig(foreach=True),
    "adamw_fused": AdamWConfig(fused=True),
    "adafactor": AdafactorConfig(weight_decay=0.01),
    "muon": MuonConfig(),
}
_PLAN = {"block.up": ColwiseParallel(), "block.down": RowwiseParallel()}
_MESHES = {
    "none": None,
    "fsdp": ((2,), ("shard",)),
    "tp": ((2,), ("tensor",)),
    "fsdp_tp": ((2, 2), ("shard", "tensor")),
    "hsdp": ((2, 2), ("replicate", "shard")),
    "fsdp1": ((2,), ("shard",)),
    "hsdp1": ((2, 2), ("replicate", "shard")),
    "fsdp1_tp": ((2, 2), ("shard", "tensor")),
}


def lay_out(model, kind):
    """``model`` under ``kind`` of parallelism."""
    if _MESHES[kind] is None:
        return model
    mesh = init_device_mesh("cpu", _MESHES[kind][0], mesh_dim_names=_MESHES[kind][1])
    if "tensor" in mesh.mesh_dim_names:
        parallelize_module(model, mesh["tensor"], _PLAN)
    if kind == "tp":
        return model
    mesh = mesh["shard"] if "tensor" in mesh.mesh_dim_names else mesh
    if "1" not in kind:
        fully_shard(model.block, mesh=mesh)
        return fully_shard(model, mesh=mesh)
    return FullyShardedDataParallel(
        model,
        device_mesh=mesh,
        sharding_strategy=ShardingStrategy.HYBRID_SHARD if kind == "hsdp1" else ShardingStrategy.FULL_SHARD,
        auto_wrap_policy=ModuleWrapPolicy({Block}),
        use_orig_params=True,
        device_id=torch.device("cpu"),
    )


class Job:
    """Model, optimizer and its state."""

    def __init__(self, kind, optimizer="adamw", *, seed=0):
        self.inner = tiny(seed=seed)
        self.model = lay_out(self.inner, kind)
        self.parameters = {
            name.replace("_fsdp_wrapped_module.", ""): value for name, value in self.model.named_parameters()
        }
        self.optimizer = build_optimizer(CONFIGS[optimizer], self.parameters, decayed=DECAYED, matrices=MATRICES)
        root = self.model if isinstance(self.model, FullyShardedDataParallel) else None
        self.component = OptimizerState(self.optimizer, self.parameters, fsdp1_root=root)

    def train(self, steps, first=0):
        train(self.model, self.optimizer, steps, first=first)

    def freeze_later(self):
        self.inner.freeze_later()

    def take_weights(self, other):
        with torch.no_grad():
            for name, value in self.parameters.items():
                local(value).copy_(local(other.parameters[name]))

    def weights(self):
        return {name: raw(value) for name, value in self.parameters.items()}

    def own_state(self):
        """The bits that the optimizer itself holds on this rank."""
        state = self.optimizer.state
        return {name: bits(dict(state[value])) for name, value in self.parameters.items() if state.get(value)}


def interrupted(kind, optimizer):
    """Train, freeze a layer, save, load into fresh objects, go on with both.

    Returns, for this rank: whether state, moments and weights are equal; and what was stored.
    """
    first = Job(kind, optimizer)
    first.train(2)
    first.freeze_later()
    first.train(1, first=2)
    stored = store(first.component.state_dict())
    second = Job(kind, optimizer, seed=1)
    second.freeze_later()
    resume(second.component, stored)
    second.take_weights(first)
    loaded = (
        bits(second.component.state_dict()) == bits(first.component.state_dict()),
        second.own_state() == first.own_state(),
    )
    first.train(2, first=3)
    second.train(2, first=3)
    went_on = second.weights() == first.weights(), second.own_state() == first.own_state()
    return (*loaded, *went_on), stored


def loaded_elsewhere(kind, optimizer, stored):
    """Load what another mesh stored; return what is stored again from here, and whether a step can be taken."""
    job = Job(kind, optimizer, seed=1)
    job.freeze_later()
    resume(job.component, stored)
    again = store(job.component.state_dict())
    layouts = {
        name: raw(value)[2] for name, value in job.component.state_dict()["state"].get("block.up.weight", {}).items()
    }
    job.train(1)
    return again, layouts


def _whole_model(kind, optimizer):
    """Three steps with gradients that are given, the same on every mesh; return the whole weights."""
    job = Job(kind, optimizer)
    for step in range(3):
        for index, (name, value) in enumerate(job.parameters.items()):
            if name.startswith(("frozen", "unused")):
                continue
            whole = torch.randn(value.shape, generator=torch.Generator().manual_seed(100 * step + index))
            value.grad = _distribute_like(whole, value)
        job.optimizer.step()
    return {leaf.path: leaf.content for leaf in store(job.parameters)}, store(job.component.state_dict())


def _distribute_like(whole, parameter):
    if not isinstance(parameter, DTensor):
        return whole
    made = torch.zeros_like(parameter, requires_grad=False)
    made.to_local().copy_(whole[own_box(parameter)])
    return made


def whole_tensor_steps(kinds):
    """Kind of parallelism, optimizer -> weights and state after steps with given gradients."""
    return {(kind, optimizer): _whole_model(kind, optimizer) for kind in kinds for optimizer in ("muon", "adafactor")}


def gathered_everywhere():
    """Whether whole tensors come together with the bits of ``full_tensor``, for even, uneven, empty and strided parts."""
    job = Job("fsdp_tp")
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    layouts = [
        [Shard(0), Shard(1)],
        [Replicate(), Shard(0)],
        [Shard(1), Shard(0)],
        [Replicate(), Replicate()],
        [Shard(0), Shard(0)],
    ]
    tensors = list(job.parameters.values())
    for shape in ((7, 5), (1, 3), (4, 4)):
        whole = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        whole.view(-1)[0] = -0.0
        tensors += [distribute_tensor(whole, mesh, layout) for layout in layouts]
    return [raw(gather_whole(tensor)) == raw(tensor.full_tensor().detach()) for tensor in tensors]


def partial_gradients():
    """A replicated parameter whose gradient comes as partial sums: the step is that of the sum."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),), mesh_dim_names=("tensor",))
    weight = nn.Parameter(distribute_tensor(torch.ones(3, 2), mesh, [Replicate()]))
    weight.grad = DTensor.from_local(torch.full((3, 2), dist.get_rank() + 1.0), mesh, [Partial()], run_check=False)
    build_optimizer(CONFIGS["adafactor"], {"weight": weight}, decayed={"weight"}).step()
    plain = nn.Parameter(torch.ones(3, 2))
    plain.grad = torch.full((3, 2), float(sum(range(1, dist.get_world_size() + 1))))
    build_optimizer(CONFIGS["adafactor"], {"weight": plain}, decayed={"weight"}).step()
    return torch.equal(weight.to_local(), plain)


def odd_layouts():
    """State of a user's optimizer that is a DTensor of another shape than its parameter, or plain: made anew as it was."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    weight = nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [Shard(0), Shard(1)]))
    optimizer = torch.optim.SGD([{"params": [weight], "name": "all"}], lr=0.1)
    optimizer.state[weight] = {
        "rows": distribute_tensor(torch.arange(6.0), mesh, [Shard(0), Replicate()]),
        "turned": distribute_tensor(torch.arange(24.0).view(6, 4), mesh, [Shard(1), Replicate()]),
        "plain": torch.arange(3.0),
    }
    component = OptimizerState(optimizer, {"weight": weight})
    state = component.state_dict()
    stored, before = store(state), bits(state)
    found = []
    for left in ({}, {"rows": torch.zeros(6), "turned": torch.zeros_like(weight), "plain": torch.zeros(3)}):
        optimizer.state[weight] = dict(left)
        resume(component, stored)
        found.append(bits(component.state_dict()) == before)
    return state["layouts"], found, stored


def odd_layouts_elsewhere(stored):
    """The same, loaded where there is no tensor axis."""
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("shard",))
    weight = nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [Shard(0)]))
    optimizer = torch.optim.SGD([{"params": [weight], "name": "all"}], lr=0.1)
    component = OptimizerState(optimizer, {"weight": weight})
    resume(component, stored)
    state = component.state_dict()
    return store(state)[:3], {key: raw(value)[2] for key, value in state["state"]["weight"].items()}


def refused_layouts():
    """Messages for state that cannot be stored or loaded as it lies."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    weight = nn.Parameter(distribute_tensor(torch.ones(6, 4), mesh, [Shard(0), Shard(1)]))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    component = OptimizerState(optimizer, {"weight": weight})
    partial = DTensor.from_local(torch.ones(6), mesh, [Partial(), Replicate()], run_check=False)
    messages = []
    for state in ({"sum": partial}, {"elsewhere": distribute_tensor(torch.ones(6), mesh["shard"], [Shard(0)])}):
        optimizer.state[weight] = state
        messages.append(_refusal(component.state_dict))
    optimizer.state[weight] = {"moment": torch.zeros_like(weight)}
    state = component.state_dict()
    state["state"] = {"weight": {"moment": torch.zeros(6, 4)}}
    return [*messages, _refusal(lambda: component.load_state_dict(state))]


def _refusal(function):
    try:
        function()
    except CheckpointError as error:
        return str(error)
    return "nothing was refused"


def flat_parts_refused():
    """Messages for state under FullyShardedDataParallel that does not fit the parameters."""
    job = Job("hsdp1")
    job.train(1)
    state = job.component.state_dict()
    moments = state["state"]["row"]
    stored = store(state)
    for leaf in stored:
        if leaf.path == ("state", "row", "exp_avg"):
            leaf.shape = (1, 5)
    messages = [_refusal(lambda: job.component.template(stored))]
    moments["exp_avg"] = torch.zeros(moments["exp_avg"].shape)
    messages.append(_refusal(lambda: job.component.load_state_dict(state)))
    # On one rank of each replica only: the other must not wait for ever.
    for value in job.optimizer.state.values() if dist.get_rank() % 2 else ():
        value["odd"] = torch.zeros(999)
    return [*messages, _refusal(job.component.state_dict)]


def flat_parts_are_copies():
    """Whether what was returned stays as it is when training goes on."""
    job = Job("hsdp1")
    job.train(1)
    state = job.component.state_dict()
    before = bits(state)
    job.train(1, first=1)
    return bits(state) == before, bits(job.component.state_dict()) == before


def four_ranks(kinds):
    """Everything that takes four ranks, in one session."""
    warnings.simplefilter("ignore")
    return {
        "interrupted": {(kind, name): interrupted(kind, name) for kind, name in kinds},
        "whole": whole_tensor_steps(["fsdp_tp", "hsdp"]),
        "gathered": gathered_everywhere(),
        "partial": partial_gradients(),
        "odd": odd_layouts(),
        "refused": refused_layouts(),
        "flat_refused": flat_parts_refused(),
        "flat_copies": flat_parts_are_copies(),
        "groups": [(group["name"], len(group["params"])) for group in Job("fsdp_tp").optimizer.param_groups],
    }


def two_ranks(kinds, elsewhere, odd):
    """Everything that takes two ranks, in one session."""
    warnings.simplefilter("ignore")
    return {
        "interrupted": {(kind, name): interrupted(kind, name) for kind, name in kinds},
        "whole": whole_tensor_steps(["fsdp", "tp"]),
        "elsewhere": {key: loaded_elsewhere(*key[1:], stored) for key, stored in elsewhere.items()},
        "odd": odd_layouts_elsewhere(odd),
    }


__all__ = ["Stored", "four_ranks", "loaded_elsewhere", "two_ranks", "whole_tensor_steps"]
