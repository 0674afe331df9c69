"""Tensors put together from parts that ranks hold, bit by bit. Must not know what the tensors are for.

Each rank writes its part into zeros, and the bytes are added up: no byte is set on two ranks, so nothing is rounded,
and uneven, empty and strided parts are no special cases.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

__all__ = ["add_bytes_", "gather_whole", "own_box"]


def add_bytes_(tensor: Tensor, group: dist.ProcessGroup) -> None:
    """Add up the bytes of a contiguous ``tensor`` over ``group``, in place. All ranks of the group call."""
    dist.all_reduce(tensor.view(-1).view(torch.uint8), group=group)


def own_box(tensor: DTensor) -> tuple[slice, ...]:
    """Return where in the whole tensor this rank's part lies."""
    sizes, offsets = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))


def gather_whole(tensor: DTensor) -> Tensor:
    """Return a new plain tensor with all elements of ``tensor``. All ranks of its mesh call.

    Unlike ``DTensor.full_tensor`` it is never the memory of a replicated ``tensor``.
    """
    local = tensor.to_local()
    whole = torch.zeros(tensor.shape, dtype=local.dtype, device=local.device)
    whole[own_box(tensor)] = local
    for axis, placement in enumerate(tensor.placements):
        if not isinstance(placement, Replicate):
            add_bytes_(whole, tensor.device_mesh.get_group(axis))
    return whole
