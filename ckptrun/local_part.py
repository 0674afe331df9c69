"""What this rank holds of a tensor. Must not know who shards it, nor why."""

from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["local_part"]


def local_part(tensor: Tensor) -> Tensor:
    """Return this rank's part of a ``DTensor``, sharing its memory and its history; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
