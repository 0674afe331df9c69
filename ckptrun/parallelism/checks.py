"""What cannot be laid out on a mesh, found before torch does something else than was asked or fails without a key.

The combinations refused here stand in the table of docs/parallelism.md, which a test generates by trying them.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import xxhash
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ckptrun.config.model import TensorStyle
from ckptrun.config.parallelism import ParallelismKind
from ckptrun.errors import ConfigError
from ckptrun.parallelism.mesh import SHARD, TENSOR
from ckptrun.parallelism.naming import Ties, named_tensors

__all__ = ["check_choice", "check_model", "check_same_on_all_ranks", "check_ties"]

_SHARDED = tuple(kind for kind in ParallelismKind if "shard" in kind.axes)


def check_choice(
    kind: ParallelismKind,
    *,
    degrees: Mapping[str, int],
    plan: Mapping[str, TensorStyle],
    blocks: Sequence[nn.Module],
    activation_checkpointing: bool,
) -> None:
    """Raise ConfigError for choices that contradict each other."""
    if kind.is_fsdp1 and degrees[SHARD] == 1:
        raise ConfigError(
            f"parallelism={kind} needs at least 2 ranks on its shard axis, got parallelism.shard=1: with one rank "
            "FullyShardedDataParallel stops sharding, and then neither averages gradients over the replicate axis nor "
            "works with tensor parallelism. Choose ddp, tp or none, or start more ranks."
        )
    if TENSOR in kind.axes and not plan:
        raise ConfigError(
            f"parallelism={kind} has nothing to shard: this model has no Linear or Embedding in its tensor plan (torch "
            "cannot shard convolutions). Choose ddp, fsdp or hsdp, or give model.tensor_plan for model=custom."
        )
    if activation_checkpointing and not blocks:
        raise ConfigError(
            "train.activation_checkpointing=true recomputes blocks, but this model names none; "
            "give their names in model.blocks, e.g. 'model.blocks=[layers.*]'."
        )


def check_model(model: nn.Module, kind: ParallelismKind, blocks: Mapping[str, nn.Module]) -> None:
    """Raise ConfigError for modules and parameters that this kind cannot take."""
    for name, block in blocks.items():
        if isinstance(block, nn.ModuleList | nn.ModuleDict):
            raise ConfigError(
                f"model.blocks: '{name}' is a {type(block).__name__}, which is never called itself; "
                f"name what is in it: '{name}.*'."
            )
    if any("_orig_mod" in name.split(".") for name, _ in model.named_modules()):
        raise ConfigError("The model holds modules that torch.compile() returned; leave that to train.compile=true.")
    if kind is ParallelismKind.ddp and not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("train.freeze leaves no parameter to train.")
    for name, parameter in model.named_parameters():
        if kind in _SHARDED and parameter.dim() == 0:
            raise ConfigError(
                f"parallelism={kind} cannot shard the scalar parameter '{name}'; "
                "give it the shape (1,), or choose none, ddp or tp."
            )


def check_same_on_all_ranks(model: nn.Module) -> None:
    """Compare names, layouts and bits of all parameters and buffers. All ranks of the default group call.

    Raises:
        ConfigError: The model differs between ranks; names the first leaf that does.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return
    own = {name: _fingerprint(tensor) for name, tensor in named_tensors(model)}
    summary = xxhash.xxh3_128_hexdigest(repr(own).encode())
    if len(set(_gather(summary))) == 1:
        return
    everywhere: list[dict[str, str]] = _gather(own)
    first = everywhere[0]
    names = dict.fromkeys(name for found in everywhere for name in found)
    differs = next(name for name in names if any(found.get(name) != first.get(name) for found in everywhere))
    ranks = [rank for rank, found in enumerate(everywhere) if found.get(differs) != first.get(differs)]
    raise ConfigError(
        f"The model was not built alike on all ranks: '{differs}' on ranks {ranks} is not what it is on rank 0. "
        "Draw initial values from torch's default generator, which is seeded alike, not by rank, clock or environment."
    )


def _fingerprint(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {tuple(tensor.shape)} {tensor.requires_grad} {xxhash.xxh3_64_hexdigest(data)}"


def _gather(value: Any) -> list[Any]:
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def check_ties(model: nn.Module, ties: Ties, *, kind: ParallelismKind, blocks: Iterable[str]) -> None:
    """Raise ConfigError when data parallelism would untie what is tied; called after tensor parallelism was applied."""
    if kind not in _SHARDED:
        return
    tensors = dict(named_tensors(model))
    inner_first = sorted(blocks, key=lambda name: -name.count("."))
    for names in ties:
        if kind.is_fsdp1 and isinstance(tensors[names[0]], DTensor):
            raise ConfigError(
                f"parallelism={kind} cannot shard the tied tensor '{names[0]}' = '{names[1]}', which model.tensor_plan "
                "shards too: FullyShardedDataParallel would untie it. Take its modules out of the plan, or use "
                "parallelism=fsdp_tp."
            )
        units = [next((block for block in inner_first if name.startswith(f"{block}.")), "") for name in names]
        if len(set(units)) > 1:
            raise ConfigError(
                f"parallelism={kind} cannot shard the tied tensor '{names[0]}' = '{names[1]}': the names belong to "
                f"different blocks ({units[0] or 'none'} and {units[1] or 'none'}), which are gathered one by one. "
                "Untie them, or change model.blocks so that one block, or none, holds both."
            )
