"""Small tensors inside of plain values, and back: a tuple of tensors is one value, not taken apart into leaves.

An optimizer with ``betas=(tensor, tensor)`` keeps such a one in its groups. Must not know files or ranks.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ckptrun.errors import ManifestError, UnsupportedLeafError
from ckptrun.memory import require_memory
from ckptrun.values import EmbeddedTensor, kind_name

__all__ = ["embed", "holds_tensor", "restore"]

_MAX_BYTES = 2**20
"""They are written as text into a file that every rank reads as a whole."""


def holds_tensor(value: Any) -> bool:
    """Whether there is a tensor anywhere in dicts, lists and tuples."""
    if isinstance(value, Mapping):
        return any(holds_tensor(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(holds_tensor(item) for item in value)
    return isinstance(value, Tensor)


def embed(value: Any, *, name: str) -> Any:
    """Return ``value`` with each tensor in it as an ``EmbeddedTensor``; itself where it holds none.

    Raises:
        UnsupportedLeafError: A tensor is too large, or is not whole on this rank, or has no bytes of its own; names
            leaf ``name``.
    """
    if not holds_tensor(value):
        return value
    if isinstance(value, Tensor):
        return _embedded(value, name)
    if isinstance(value, Mapping):
        made = copy.copy(value)
        for key, item in value.items():
            made[key] = embed(item, name=name)  # type: ignore[index]  # a mapping that cannot be set is refused by name
        return made
    items = [embed(item, name=name) for item in value]
    if type(value) not in (list, tuple):
        raise UnsupportedLeafError(
            f"Leaf '{name}' is or holds a {kind_name(value)} of tensors, which would come back as a plain "
            f"{'tuple' if isinstance(value, tuple) else 'list'}. Return a list, a tuple or a dict of tensors from "
            "state_dict()."
        )
    return type(value)(items)


def _embedded(tensor: Tensor, name: str) -> EmbeddedTensor:
    plain = type(tensor) in (Tensor, Parameter) and tensor.layout is torch.strided
    if not plain or tensor.is_meta or tensor.is_nested or tensor.is_quantized:
        raise UnsupportedLeafError(
            f"Leaf '{name}' holds a {kind_name(tensor)} ({tensor.layout}, {tensor.dtype}, {tensor.device}) in a tuple, "
            "and only plain tensors can be stored there. Use a list or a dict, whose tensors are leaves."
        )
    size = tensor.numel() * tensor.element_size()
    if size > _MAX_BYTES:
        raise UnsupportedLeafError(
            f"Leaf '{name}' holds a tensor of {size} bytes in a tuple, where tensors of up to {_MAX_BYTES} bytes can "
            "be stored. Use a list or a dict, whose tensors are leaves."
        )
    require_memory(tensor, name=name)
    host = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    content = host.view(-1).view(torch.uint8).numpy().tobytes() if size else b""
    return EmbeddedTensor(dtype=str(tensor.dtype).removeprefix("torch."), shape=tuple(tensor.shape), content=content)


def restore(value: Any, *, name: str, like: Any = None) -> Any:
    """Undo :func:`embed`: return ``value`` with tensors in it again; itself where it holds none.

    Args:
        value: What was embedded.
        name: The leaf, for messages.
        like: A value whose tensors at the same places say on which devices the new ones shall lie; on the host without.

    Raises:
        ManifestError: What it says of a tensor cannot be; names the leaf.
    """
    if isinstance(value, EmbeddedTensor):
        return _restored(value, name, like)
    if isinstance(value, Mapping):
        pairs = [(key, item, restore(item, name=name, like=_at(like, key))) for key, item in value.items()]
        if all(new is old for _, old, new in pairs):
            return value
        made = copy.copy(value)
        for key, _, new in pairs:
            made[key] = new  # type: ignore[index]  # what is decoded are dicts
        return made
    if type(value) not in (list, tuple):
        return value
    items = [restore(item, name=name, like=_at(like, index)) for index, item in enumerate(value)]
    return value if all(new is old for new, old in zip(items, value, strict=True)) else type(value)(items)


def _at(like: Any, key: Any) -> Any:
    if isinstance(like, Mapping):
        return like.get(key)
    if isinstance(like, list | tuple) and isinstance(key, int) and key < len(like):
        return like[key]
    return None


def _restored(value: EmbeddedTensor, name: str, like: Any) -> Tensor:
    dtype = getattr(torch, value.dtype, None)
    if not isinstance(dtype, torch.dtype) or math.prod(value.shape) * dtype.itemsize != len(value.content):
        raise ManifestError(
            f"Leaf '{name}' holds a tensor of {value.dtype}, shape {list(value.shape)} and {len(value.content)} bytes."
        )
    if not value.content:
        tensor = torch.empty(value.shape, dtype=dtype)
    else:
        tensor = torch.frombuffer(bytearray(value.content), dtype=torch.uint8).view(dtype).reshape(value.shape)
    return tensor.to(like.device) if isinstance(like, Tensor) else tensor
