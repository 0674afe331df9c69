"""A tensor's elements as bytes in host memory, row-major, without a copy where that is possible.

Must not know files or ranks.
"""

import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ckptrun.checkpoint.dtypes import is_known
from ckptrun.errors import UnsupportedLeafError

__all__ = ["dtype_name", "host_bytes", "plain_tensor", "require_storable", "writable_bytes"]


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def require_storable(name: str, dtype: torch.dtype, layout: torch.layout) -> None:
    """Check that tensors of this kind have plain bytes.

    Raises:
        UnsupportedLeafError: Quantized, sub-byte or sparse tensors; names leaf ``name``.
    """
    if layout is not torch.strided:
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a tensor of layout {layout}; only strided ones can be stored. Save its parts."
        )
    if not is_known(dtype_name(dtype)):
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a tensor of {dtype}, which format 1 cannot hold. Save a view of it as another dtype."
        )


def plain_tensor(tensor: Tensor, *, name: str) -> Tensor:
    """Return the tensor that has the storage.

    Raises:
        UnsupportedLeafError: A subclass of several tensors, or a tensor without data; names leaf ``name``.
    """
    tensor = tensor.detach()
    if isinstance(tensor, AsyncCollectiveTensor):
        tensor = tensor.wait()
    if is_traceable_wrapper_subclass(tensor) or tensor.is_meta or tensor.is_nested:
        kind = "on the meta device, without data" if tensor.is_meta else "made of other tensors"
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a {type(tensor).__qualname__} {kind}, and has no bytes of its own. "
            "Return plain tensors from state_dict()."
        )
    return tensor


def host_bytes(tensor: Tensor, *, name: str) -> memoryview:
    """Return the bytes of a tensor on any device; a copy only where it is not contiguous in host memory.

    Raises:
        UnsupportedLeafError: See :func:`plain_tensor`.
    """
    bare = plain_tensor(tensor, name=name).resolve_conj().resolve_neg().cpu().contiguous()
    return _bytes(bare)


def writable_bytes(tensor: Tensor) -> memoryview | None:
    """Return the memory of a tensor; None where writing there would not set its elements row by row."""
    bare = tensor.detach()
    if type(bare) is not Tensor or bare.device.type != "cpu" or not bare.is_contiguous():
        return None
    if bare.is_conj() or bare.is_neg():
        return None
    return _bytes(bare)


def _bytes(tensor: Tensor) -> memoryview:
    # Flat first: a 0-dim tensor has no last dim to spread its bytes along.
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # arrays are buffers
