"""Tensor parallelism: shards modules as a plan of name patterns says, so that any model computes as before.

Between planned modules activations are plain tensors, the same on every tensor-parallel rank. Only from a colwise
Linear to the rowwise Linear beside it (in the same parent module) they are this rank's part of the features; everything
that stands alone takes whole activations and gives whole activations back.
"""

from collections.abc import Mapping
from typing import Any, assert_never

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.parallel.style import ParallelStyle

from ckptrun.config.model import TensorStyle
from ckptrun.errors import ConfigError
from ckptrun.parallelism.naming import Ties, matching_modules

__all__ = ["apply_tensor_plan"]

_KEY = "model.tensor_plan"
_SEQUENCE_DIM = 1


def apply_tensor_plan(model: nn.Module, plan: Mapping[str, TensorStyle], *, mesh: DeviceMesh, ties: Ties) -> None:
    """Shard the modules that ``plan`` names over the 1-dim ``mesh``, in place; ties are kept.

    Every rank of the mesh calls, with equal parameters: each keeps its part, nothing is sent.

    Raises:
        ConfigError: A pattern matches nothing, two patterns want different things of one module, a module cannot be
            sharded in this way, its size is not a multiple of the degree, or a tie would break.
    """
    chosen = _choose(model, plan)
    _check_sizes(model, chosen, mesh.size())
    paired = _pairs(model, chosen)
    for name, style in chosen.items():
        module = model.get_submodule(name)
        parallelize_module(module, mesh, _style(module, style, paired=name in paired), src_data_rank=None)
    _keep_ties(model, ties)
    for parameter in model.parameters():
        if isinstance(parameter, DTensor) and parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(_sum_gradient)  # type: ignore[no-untyped-call]


def _sum_gradient(parameter: Tensor) -> None:
    """Sum the gradient of a parameter whose module saw a part of the sequence; torch leaves that open."""
    gradient = parameter.grad
    if not isinstance(parameter, DTensor) or not isinstance(gradient, DTensor):
        return
    if gradient.placements != parameter.placements:
        parameter.grad = gradient.redistribute(placements=parameter.placements)


def _choose(model: nn.Module, plan: Mapping[str, TensorStyle]) -> dict[str, TensorStyle]:
    """Module name -> style, in the model's order."""
    chosen: dict[str, TensorStyle] = {}
    for pattern, style in plan.items():
        for name, _ in matching_modules(model, pattern, key=_KEY):
            if chosen.setdefault(name, style) is not style:
                raise ConfigError(f"{_KEY} wants module '{name}' both {chosen[name]} and {style}; change one pattern.")
    return {name: chosen[name] for name, _ in model.named_modules() if name in chosen}


def _check_sizes(model: nn.Module, chosen: Mapping[str, TensorStyle], degree: int) -> None:
    for name, style in chosen.items():
        module = model.get_submodule(name)
        if style is TensorStyle.sequence:
            continue
        size = _sharded_size(module, style)
        if size is None:
            raise ConfigError(
                f"{_KEY}: module '{name}' is a {type(module).__name__}, and torch can shard only Linear and Embedding "
                f"{style}. Remove it from the plan."
            )
        if size % degree:
            raise ConfigError(
                f"{_KEY}: module '{name}' has {size} features to shard {style}, which is not a multiple of "
                f"parallelism.tensor ({degree}). Change the model or the degree, or remove the module from the plan."
            )


def _sharded_size(module: nn.Module, style: TensorStyle) -> int | None:
    match module, style:
        case nn.Linear(), TensorStyle.colwise:
            return module.out_features
        case nn.Linear(), TensorStyle.rowwise:
            return module.in_features
        case nn.Embedding(), TensorStyle.colwise:
            return module.embedding_dim
        case nn.Embedding(), TensorStyle.rowwise:
            return module.num_embeddings
        case _:
            return None


def _pairs(model: nn.Module, chosen: Mapping[str, TensorStyle]) -> set[str]:
    """Linears that hand their part of the features on, or take it: their parent has children of both styles."""
    styles: dict[str, dict[str, TensorStyle]] = {}
    for name, style in chosen.items():
        if isinstance(model.get_submodule(name), nn.Linear):
            styles.setdefault(name.rpartition(".")[0], {})[name] = style
    both = {TensorStyle.colwise, TensorStyle.rowwise}
    return {name for children in styles.values() if both <= set(children.values()) for name in children}


def _style(module: nn.Module, style: TensorStyle, *, paired: bool) -> ParallelStyle:
    match style:
        case TensorStyle.colwise:
            return ColwiseParallel(output_layouts=Shard(-1) if paired else Replicate())
        case TensorStyle.rowwise:
            return RowwiseParallel(input_layouts=Shard(-1) if paired else Replicate())
        case TensorStyle.sequence:
            return _SequenceParallel()
        case _:
            assert_never(style)


class _SequenceParallel(ParallelStyle):
    """Computes on this rank's part of the sequence (dim 1); input and output are whole.

    A module with parameters or buffers computes on DTensors, so that its gradients are summed over the ranks. A module
    without any (dropout) computes on plain tensors: a DTensor would draw its random numbers with a tracker of torch's
    own, and only where there is CUDA.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        self._plain = next(module.parameters(), None) is None and next(module.buffers(), None) is None
        return distribute_module(module, device_mesh, self._replicate, self._split, self._join)  # type: ignore[arg-type]

    @staticmethod
    def _replicate(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
        # distribute_module would do it too, but would make frozen parameters trainable again.
        for own, parameter in module.named_parameters(recurse=False):
            replicated = DTensor.from_local(parameter.detach(), mesh, [Replicate()], run_check=False)
            module.register_parameter(own, nn.Parameter(replicated, requires_grad=parameter.requires_grad))

    def _split(self, module: nn.Module, inputs: Any, mesh: DeviceMesh) -> Any:
        whole = inputs[0]
        if whole.dim() <= _SEQUENCE_DIM or whole.size(_SEQUENCE_DIM) % mesh.size():
            raise ConfigError(
                f"{_KEY}: a {type(module).__name__} is to be sharded over the sequence (dim {_SEQUENCE_DIM}), but its "
                f"input is {tuple(whole.shape)}, which parallelism.tensor ({mesh.size()}) does not divide. "
                "Change the length of the sequences, the degree, or the plan."
            )
        part = DTensor.from_local(whole, mesh, [Replicate()], run_check=False).redistribute(
            placements=[Shard(_SEQUENCE_DIM)]
        )
        return (part.to_local() if self._plain else part, *inputs[1:])

    def _join(self, module: nn.Module, output: Any, mesh: DeviceMesh) -> Tensor:
        sharded = [Shard(_SEQUENCE_DIM)]
        part = DTensor.from_local(output, mesh, sharded, run_check=False) if self._plain else output
        whole: Tensor = part.redistribute(placements=[Replicate()]).to_local()
        return whole


def _keep_ties(model: nn.Module, ties: Ties) -> None:
    """Make tied parameters one again; sharding gave each of their names a tensor of its own."""
    for names in ties:
        tensors = [_get(model, name) for name in names]
        if len({id(tensor) for tensor in tensors}) == 1:
            continue
        layouts = [tensor.placements if isinstance(tensor, DTensor) else None for tensor in tensors]
        if any(layout != layouts[0] for layout in layouts):
            raise ConfigError(
                f"{_KEY}: '{names[0]}' and '{names[1]}' are one tied parameter, but the plan shards them differently: "
                f"{layouts[0] or 'not at all'} and {layouts[1] or 'not at all'}. Plan both so that the same dim is "
                "sharded (an Embedding rowwise and a Linear colwise), or neither."
            )
        for name in names[1:]:
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, tensors[0])


def _get(model: nn.Module, name: str) -> Tensor:
    parent, _, own = name.rpartition(".")
    tensor: Tensor = getattr(model.get_submodule(parent), own)
    return tensor
