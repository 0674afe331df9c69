"""The state of a dataset as plain values, and back: what users put into ``state_dict()``, stored without pickle.

Tensors and NumPy arrays become their bytes, so this is for positions, counters and generator states, not for large
buffers. Must not know loaders or files.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from ckptrun.errors import UnsupportedLeafError
from ckptrun.values import dict_kind, encode, make_dict, require_key

__all__ = ["from_plain", "to_plain"]

_TENSOR = "ckptrun.tensor"
_ARRAY = "ckptrun.array"
_SCALAR = "ckptrun.scalar"
_TAGS = (_TENSOR, _ARRAY, _SCALAR)


def to_plain(value: Any, *, name: str) -> Any:
    """Return a copy of ``value`` that shares no memory with it and holds plain values only.

    Raises:
        UnsupportedLeafError: Something in it is no tensor, no array and no plain value; names the leaf.
    """
    if isinstance(value, torch.Tensor):
        host = value.detach().cpu().contiguous()
        content = host.reshape(-1).view(torch.uint8).numpy().tobytes()
        return {_TENSOR: [str(host.dtype).removeprefix("torch."), list(host.shape), content]}
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return {_ARRAY: [value.dtype.str, list(value.shape), value.tobytes()]}
    if isinstance(value, np.generic) and not value.dtype.hasobject:
        return {_SCALAR: [value.dtype.str, value.tobytes()]}
    if isinstance(value, Mapping):
        return _mapping_to_plain(value, name=name)
    if type(value) in (list, tuple):
        return type(value)(to_plain(item, name=f"{name}.{index}") for index, item in enumerate(value))
    encode(value, name=name)
    return value


def _mapping_to_plain(value: Mapping[Any, Any], *, name: str) -> dict[Any, Any]:
    kind = dict_kind(value, name=name)
    for key in value:
        require_key(key, name=name)
        if key in _TAGS:
            raise UnsupportedLeafError(f"Leaf '{name}' has the dict key {key!r}, which has a meaning; use another.")
    return make_dict(kind, ((key, to_plain(item, name=f"{name}.{key}")) for key, item in value.items()))


def from_plain(value: Any) -> Any:
    """Undo :func:`to_plain`; what is returned may be changed freely."""
    if isinstance(value, Mapping):
        if _TENSOR in value:
            dtype, shape, content = value[_TENSOR]
            flat = (
                torch.frombuffer(bytearray(content), dtype=torch.uint8)
                if content
                else torch.empty(0, dtype=torch.uint8)
            )
            return flat.view(getattr(torch, dtype)).reshape(shape)
        if _ARRAY in value:
            dtype, shape, content = value[_ARRAY]
            return np.frombuffer(bytearray(content), dtype=np.dtype(dtype)).reshape(shape)
        if _SCALAR in value:
            dtype, content = value[_SCALAR]
            return np.frombuffer(content, dtype=np.dtype(dtype))[0]
        kind = dict_kind(value, name="data")
        return make_dict(kind, ((key, from_plain(item)) for key, item in value.items()))
    if type(value) in (list, tuple):
        return type(value)(from_plain(item) for item in value)
    return value
