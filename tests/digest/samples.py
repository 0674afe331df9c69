"""Tensors of any dtype with random bits."""

import pytest
import torch

from tests.support.bits import random_tensor

DTYPES = [
    torch.bool,
    torch.uint8,
    torch.int8,
    torch.uint16,
    torch.int16,
    torch.uint32,
    torch.int32,
    torch.uint64,
    torch.int64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
    torch.bfloat16,
    torch.float16,
    torch.float32,
    torch.float64,
    torch.complex32,
    torch.complex64,
    torch.complex128,
]
if hasattr(torch, "float4_e2m1fn_x2"):
    DTYPES.append(torch.float4_e2m1fn_x2)


# torch says so once, at the first complex32 tensor of a process.
IGNORE_COMPLEX_HALF = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")


def random_bits(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Every bit pattern may come, NaN payloads included; bool holds 0 and 1 only."""
    return random_tensor(dtype, shape, seed)


def raw(tensor: torch.Tensor) -> torch.Tensor:
    """The bytes of a dense tensor, sharing its memory."""
    return tensor.view(-1).view(torch.uint8)
