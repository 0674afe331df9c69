"""Tensors that tell DCP themselves which chunks they hold: its protocol ``torch.distributed._checkpointable``.

Such a tensor may support no operation at all. What is read, written and staged are the plain tensors it hands out.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.tensor import DTensor

from ckptrun.errors import UnsupportedLeafError

__all__ = ["StagedShards", "chunks_of", "held_elements", "is_checkpointable", "shards_of"]

_PROTOCOL = ("__create_write_items__", "__create_chunk_list__", "__get_tensor_shard__")


def is_checkpointable(value: Any) -> bool:
    """Whether it is a tensor of the protocol, or a DTensor whose local part is; a plain DTensor is not meant."""
    tensor = value._local_tensor if isinstance(value, DTensor) else value
    return isinstance(tensor, Tensor) and all(hasattr(tensor, method) for method in _PROTOCOL)


def chunks_of(tensor: Any) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offsets and sizes of the chunks that this rank holds of it."""
    return [(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in tensor.__create_chunk_list__()]


def held_elements(tensor: Any) -> int:
    """How many elements this rank holds of it."""
    return sum(math.prod(sizes) for _, sizes in chunks_of(tensor))


def shards_of(tensor: Any, *, name: str) -> list[tuple[WriteItem, Tensor]]:
    """Return what DCP is to write of it as leaf ``name``, and the tensor with the elements of each item.

    Raises:
        UnsupportedLeafError: Something in it is no tensor; names the leaf.
    """
    found = []
    for item in tensor.__create_write_items__(name, tensor):
        shard = tensor.__get_tensor_shard__(item.index)
        if item.tensor_data is None or not isinstance(shard, Tensor):
            raise UnsupportedLeafError(
                f"Leaf '{name}' is a {type(tensor).__qualname__} that hands out a {type(shard).__qualname__}; only "
                "tensors can be staged."
            )
        found.append((item, shard))
    return found


class StagedShards(Tensor):
    """The host copy of a tensor of the protocol: hands out the same chunks, and supports nothing else.

    Args:
        items: What DCP is to write.
        shards: The elements of each item.
        size: Of the full tensor.
    """

    _items: Sequence[WriteItem]
    _shards: Sequence[Tensor]

    @staticmethod
    def __new__(
        cls: type, items: Sequence[WriteItem], shards: Sequence[Tensor], size: torch.Size, dtype: torch.dtype
    ) -> "StagedShards":
        """Make a tensor without memory of its own."""
        made: StagedShards = Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=torch.device("cpu"))
        made._items, made._shards = items, shards
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        raise NotImplementedError(f"A staged copy is only written; {func} was called with it.")

    def __repr__(self) -> str:  # type: ignore[override]
        return f"StagedShards({len(self._shards)} chunks of {tuple(self.shape)}, {self.dtype})"

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        return [dataclasses.replace(item, index=dataclasses.replace(item.index, fqn=fqn)) for item in self._items]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [item.tensor_data.chunk for item in self._items if item.tensor_data is not None]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        for item, shard in zip(self._items, self._shards, strict=True):
            if item.index.offset == index.offset:
                return shard
        raise ValueError(f"{self} has no chunk at {index.offset}.")
