"""Wraps a model so that data-parallel ranks share its gradients or its parameters. Must not know tensor plans.

What all wrappings have in common: parameters keep their values, buffers are left to ``buffers.py``, gradients are
reduced in fp32.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FullyShardedDataParallel,
    MixedPrecision,
    MixedPrecisionPolicy,
    ShardingStrategy,
    fully_shard,
)
from torch.distributed.fsdp.wrap import CustomPolicy
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map_only

from ckptrun.parallelism.mesh import REPLICATE
from ckptrun.parallelism.naming import clean_name

__all__ = ["replicate", "shard", "shard_flat"]


def replicate(model: nn.Module, *, mesh: DeviceMesh, device: torch.device) -> DistributedDataParallel:
    """Average gradients over the ``replicate`` axis (DDP).

    ``find_unused_parameters`` is always on. Without it DDP rebuilds its buckets in the order in which the first
    backward delivered gradients, and from 3 ranks on the order of summation changes after the first step: a resumed run
    would compute other bits than the run it continues. It also lets a parameter that is never used stay without a
    gradient.
    """
    with warnings.catch_warnings():
        # The name that replaces it is not there before torch 2.13.
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return DistributedDataParallel(
            model,
            device_ids=None if device.type == "cpu" else [device],
            process_group=mesh.get_group(REPLICATE),
            broadcast_buffers=False,
            find_unused_parameters=True,
        )


def shard(model: nn.Module, blocks: Sequence[nn.Module], *, mesh: DeviceMesh, dtype: torch.dtype | None) -> None:
    """Shard each of ``blocks``, and what is left, over the data axes of ``mesh`` (FSDP2), in place.

    Args:
        model: On the device, with its tensor-parallel modules sharded already.
        blocks: Modules of ``model``, inner before outer.
        mesh: 1-dim (shard) or 2-dim (replicate, shard).
        dtype: Of parameters and activations in forward and backward; None: as they are.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32)
    if dtype is not None:
        for norm in _norms_with_statistics(model):
            # Their running averages are fp32, and torch's kernels want weight and averages in one dtype.
            fully_shard(norm, mesh=mesh, mp_policy=MixedPrecisionPolicy())
    for block in (*blocks, model):
        block.register_forward_hook(_without_views)
        fully_shard(block, mesh=mesh, mp_policy=policy)


def _without_views(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Let no unit return a view, as a tensor-parallel module does.

    An operation in place on a view drops the hook by which ``fully_shard`` gathers the unit's parameters in backward,
    and gradients would be silently wrong.
    """
    return tree_map_only(Tensor, lambda tensor: tensor.clone() if tensor._is_view() else tensor, output)


def _norms_with_statistics(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, _NormBase) and module.affine]


def shard_flat(
    model: nn.Module, blocks: Sequence[nn.Module], *, mesh: DeviceMesh, dtype: torch.dtype | None, device: torch.device
) -> FullyShardedDataParallel:
    """Shard each of ``blocks``, and what is left, as flat parameters; arguments as for :func:`shard` (FSDP1)."""
    precision = None if dtype is None else MixedPrecision(param_dtype=dtype, reduce_dtype=torch.float32)
    chosen = set(blocks)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    is_block: Callable[[nn.Module], bool] = lambda module: module in chosen  # noqa: E731  # typed for CustomPolicy
    with warnings.catch_warnings():
        # Said because we rely on it: BatchNorm is wrapped on its own and stays in fp32.
        warnings.filterwarnings("ignore", message="Both mixed precision and an auto_wrap_policy")
        # Frozen parameters are the user's choice; they cost memory, as the warning says, and nothing else.
        warnings.filterwarnings("ignore", message=".*has both parameters with requires_grad=True and False")
        module = FullyShardedDataParallel(
            model,
            sharding_strategy=ShardingStrategy.HYBRID_SHARD if mesh.ndim == 2 else ShardingStrategy.FULL_SHARD,
            device_mesh=mesh,
            auto_wrap_policy=CustomPolicy(is_block),
            mixed_precision=precision,
            device_id=device,
            use_orig_params=True,
        )
    for name, parameter in module.named_parameters():
        # Flattening a DTensor makes it trainable.
        if clean_name(name) in frozen:
            parameter.requires_grad_(False)
    return module
