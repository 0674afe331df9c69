"""Compares tensors and nested states by their bits, never by value, never with a tolerance; and flips those of files."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def bits(tensor: Tensor) -> tuple[torch.dtype, tuple[int, ...], bytes]:
    """Everything that tells a tensor from another: dtype, shape, and the bytes of its elements."""
    raw = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)
    return tensor.dtype, tuple(tensor.shape), raw.numpy().tobytes()


def all_bits(value: Any) -> Any:
    """A nested state with the bits of each tensor in its place, and the type of each plain value beside it."""
    if isinstance(value, Tensor):
        local = value.to_local() if hasattr(value, "to_local") else value
        return bits(local)
    if isinstance(value, dict):
        return {key: all_bits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(all_bits(item) for item in value)
    return type(value), repr(value)


def random_tensor(dtype: torch.dtype, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """A tensor of any bit patterns of ``dtype``, NaNs of all kinds among them."""
    generator = torch.Generator().manual_seed(seed)
    count = 1
    for size in shape:
        count *= size
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).view(shape)


def flip(file: Path, position: int = -1, bit: int = 0) -> None:
    """Change one bit of a file."""
    raw = bytearray(file.read_bytes())
    raw[position] ^= 1 << bit
    file.write_bytes(raw)
