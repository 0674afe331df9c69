"""Lays a model out on a mesh: tensor parallelism, recomputation, compilation, then data parallelism, in this order.

Each wraps what the one before made. Nothing here draws random numbers or changes the value of a parameter. (On CUDA,
torch may give every rank the random state of rank 0 when it first needs one for a DTensor; so seed the ranks' own
streams afterwards.) Must not know which model it is: what it needs to know comes as a :class:`Layout`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from ckptrun.config.model import TensorStyle
from ckptrun.config.parallelism import ParallelismKind
from ckptrun.config.precision import PrecisionKind
from ckptrun.errors import InternalError
from ckptrun.parallelism.checks import (
    check_choice,
    check_model,
    check_same_on_all_ranks,
    check_ties,
)
from ckptrun.parallelism.data_parallel import replicate, shard, shard_flat
from ckptrun.parallelism.forward import autocast_forward, compile_forward, recompute_in_backward
from ckptrun.parallelism.gradients import sharded_axes
from ckptrun.parallelism.mesh import SHARD, TENSOR, data_axes
from ckptrun.parallelism.naming import Ties, clean_name, find_ties, matching_modules, named_tensors
from ckptrun.parallelism.parallel_model import ParallelModel
from ckptrun.parallelism.tensor import apply_tensor_plan

__all__ = ["Layout", "Settings", "parallelize"]

_DTYPES = {PrecisionKind.fp32: None, PrecisionKind.bf16: torch.bfloat16, PrecisionKind.fp16: torch.float16}
# The other kinds wrap block by block, and have a policy of their own for half precision.
_IN_ONE_PIECE = (ParallelismKind.none, ParallelismKind.ddp, ParallelismKind.tp)


class Layout(Protocol):
    """What a mesh may do with the model; patterns are module names whose parts may be wildcards."""

    @property
    def blocks(self) -> Sequence[str]:
        """Modules that are sharded, compiled and recomputed one by one."""

    @property
    def tensor_plan(self) -> Mapping[str, TensorStyle]:
        """Modules that tensor parallelism shards, and how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How a model is laid out."""

    kind: ParallelismKind
    device: torch.device
    """Where this rank computes, with its index."""
    precision: PrecisionKind = PrecisionKind.fp32
    activation_checkpointing: bool = False
    compile: bool = False


def parallelize(model: nn.Module, layout: Layout, *, mesh: DeviceMesh | None, settings: Settings) -> ParallelModel:
    """Lay ``model`` out on ``mesh``, changing it; what is called afterwards is ``ParallelModel.module``.

    All ranks call, with models built alike: same modules, same values (from one seed), the same parameters frozen
    (``requires_grad``), on whatever device.

    Args:
        model: Fresh, or filled with values that are the same on all ranks.
        layout: Its blocks and its tensor plan.
        mesh: From ``build_mesh`` for the same kind.
        settings: What to do.

    Raises:
        ConfigError: torch cannot do this, or it would not be what was asked for.
    """
    kind = settings.kind
    blocks = _find_blocks(model, layout)
    check_choice(
        kind,
        degrees={} if mesh is None else {axis: mesh[axis].size() for axis in mesh.mesh_dim_names or ()},
        plan=layout.tensor_plan,
        blocks=list(blocks.values()),
        activation_checkpointing=settings.activation_checkpointing,
    )
    check_model(model, kind, blocks)
    check_same_on_all_ranks(model)
    model.to(settings.device)
    ties = find_ties(model)
    decayed = frozenset(name for name, parameter in model.named_parameters() if parameter.dim() >= 2)
    if TENSOR in kind.axes:
        apply_tensor_plan(model, layout.tensor_plan, mesh=_axis(mesh, TENSOR), ties=ties)
    check_ties(model, ties, kind=kind, blocks=blocks)
    axes = {name: sharded_axes(tensor) for name, tensor in named_tensors(model)}
    _change_forwards(model, list(blocks.values()), settings)
    module = _share(model, list(blocks.values()), mesh=mesh, settings=settings)
    parameters = {clean_name(name): parameter for name, parameter in model.named_parameters()}
    if kind.is_fsdp1:
        axes = {name: axes[name] | {SHARD} for name in parameters}
    else:
        axes = {name: sharded_axes(parameter) for name, parameter in parameters.items()}
    _check_still_tied(module if kind.is_fsdp1 else model, ties)
    return ParallelModel(module, named_parameters=parameters, decayed=decayed, axes=axes, ties=ties, mesh=mesh)


def _find_blocks(model: nn.Module, layout: Layout) -> dict[str, nn.Module]:
    """Name -> block, inner before outer. Also looks the tensor plan's patterns up, so that a typo shows everywhere."""
    for pattern in layout.tensor_plan:
        matching_modules(model, pattern, key="model.tensor_plan")
    found = [pair for pattern in layout.blocks for pair in matching_modules(model, pattern, key="model.blocks")]
    return dict(sorted(found, key=lambda pair: -pair[0].count(".")))


def _change_forwards(model: nn.Module, blocks: Sequence[nn.Module], settings: Settings) -> None:
    if settings.activation_checkpointing:
        for block in blocks:
            recompute_in_backward(block, compiled=settings.compile)
    if settings.compile:
        for module in [model] if settings.kind in _IN_ONE_PIECE or not blocks else blocks:
            compile_forward(module)
    dtype = _DTYPES[settings.precision]
    if dtype is not None and settings.kind in _IN_ONE_PIECE:
        autocast_forward(model, device_type=settings.device.type, dtype=dtype)


def _share(model: nn.Module, blocks: Sequence[nn.Module], *, mesh: DeviceMesh | None, settings: Settings) -> nn.Module:
    """Spread the model over the data axes; return what is called."""
    dtype = _DTYPES[settings.precision]
    match settings.kind:
        case ParallelismKind.none | ParallelismKind.tp:
            return model
        case ParallelismKind.ddp:
            return replicate(model, mesh=_required(mesh), device=settings.device)
        case ParallelismKind.fsdp1 | ParallelismKind.hsdp1 | ParallelismKind.fsdp1_tp:
            return shard_flat(model, blocks, mesh=_data_mesh(mesh), dtype=dtype, device=settings.device)
        case (
            ParallelismKind.fsdp
            | ParallelismKind.hsdp
            | ParallelismKind.fsdp_tp
            | ParallelismKind.hsdp_tp
            | ParallelismKind.ddp_tp
        ):
            shard(model, blocks, mesh=_data_mesh(mesh), dtype=dtype)
            return model
        case _:
            assert_never(settings.kind)


def _check_still_tied(module: nn.Module, ties: Ties) -> None:
    tensors = dict(named_tensors(module))
    for names in ties:
        if len({id(tensors[name]) for name in names}) != 1:
            raise InternalError(f"Laying the model out untied {', '.join(names)}.")


def _required(mesh: DeviceMesh | None) -> DeviceMesh:
    if mesh is None:
        raise InternalError("This kind of parallelism needs a mesh.")
    return mesh


def _axis(mesh: DeviceMesh | None, axis: str) -> DeviceMesh:
    return _required(mesh)[axis]


def _data_mesh(mesh: DeviceMesh | None) -> DeviceMesh:
    axes = data_axes(mesh)
    return _required(mesh)[axes if len(axes) > 1 else axes[0]]
