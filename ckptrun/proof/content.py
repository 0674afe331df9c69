"""A quick digest of the bits that one rank holds. Not independent of sharding; that is what ``ckptrun.digest`` is."""

import torch
import xxhash
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor

__all__ = ["content_digest"]


@torch.no_grad()
def content_digest(value: Tensor) -> str:
    """Return 32 hex digits for the bits of ``value``, its dtype and its shape; of a DTensor, for this rank's part.

    Waits for the device. No collective.
    """
    local = value.detach()
    if isinstance(local, DTensor):
        local = local.to_local()
    if isinstance(local, AsyncCollectiveTensor):
        local = local.wait()
    raw = local.resolve_conj().resolve_neg().cpu().contiguous()
    if raw.dtype is torch.bfloat16 or raw.dtype.itemsize == 1 or not raw.dim():
        raw = raw.reshape(-1).view(torch.uint8)
    hasher = xxhash.xxh3_128(f"{local.dtype}{tuple(local.shape)}".encode())
    hasher.update(raw.numpy().tobytes())
    return hasher.hexdigest()
