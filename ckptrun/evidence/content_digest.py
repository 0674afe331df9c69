"""A quick digest of the bits that one rank holds. Not independent of sharding; that is what ``ckptrun.digest`` is."""

import torch
import xxhash
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor

__all__ = ["content_digest", "digest_of_part", "own_part", "raw_bytes"]


@torch.no_grad()
def own_part(value: Tensor) -> Tensor:
    """Return what this rank holds of ``value``, plain, contiguous and on the host.

    Waits for the device. No collective.
    """
    local = value.detach()
    if isinstance(local, DTensor):
        local = local.to_local()
    if isinstance(local, AsyncCollectiveTensor):
        local = local.wait()
    if local.layout is not torch.strided:
        # The gradient of an embedding may be.
        local = local.to_dense()
    return local.resolve_conj().resolve_neg().cpu().contiguous()


def raw_bytes(part: Tensor) -> bytes:
    """Return the bytes of a part that :func:`own_part` gave."""
    if part.dtype is torch.bfloat16 or part.dtype.itemsize == 1 or not part.dim():
        part = part.reshape(-1).view(torch.uint8)
    return part.numpy().tobytes()


def digest_of_part(part: Tensor, raw: bytes) -> str:
    """Return 32 hex digits for the bits of a part, its dtype and its shape."""
    hasher = xxhash.xxh3_128(f"{part.dtype}{tuple(part.shape)}".encode())
    hasher.update(raw)
    return hasher.hexdigest()


def content_digest(value: Tensor) -> str:
    """Return 32 hex digits for the bits of ``value``, its dtype and its shape; of a DTensor, for this rank's part.

    Waits for the device. No collective.
    """
    part = own_part(value)
    return digest_of_part(part, raw_bytes(part))
