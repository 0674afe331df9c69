"""Single elements of tensors as a person reads them, and their bits. Must not print."""

import struct
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["element_bits", "element_json", "element_text", "float_bits"]

# A number that reads back as the same float, no longer than that; smaller floats are exact as float32.
_SHORTEST = {8: np.float64, 4: np.float32}


def element_text(element: Tensor) -> str:
    """Return a number of any dtype, exactly: the shortest that reads back as the same float64 or float32.

    Shapes:
        element: (), in host memory.
    """
    if element.dtype is torch.float4_e2m1fn_x2:
        return element_bits(element)
    if element.is_complex():
        real, imaginary = (element_text(part) for part in torch.view_as_real(element.resolve_conj()))
        return f"{real}{'' if imaginary.startswith('-') else '+'}{imaginary}j"
    if not element.is_floating_point():
        return str(element.item())
    wide = element if element.dtype is torch.float64 else element.to(torch.float32)
    return str(_SHORTEST[wide.element_size()](wide.item()))


def element_bits(element: Tensor) -> str:
    """Return the bits of an element as hex, most significant digit first; a complex number's real part first."""
    if element.is_complex():
        return " ".join(element_bits(part) for part in torch.view_as_real(element.resolve_conj()))
    raw = bytes(element.reshape(1).contiguous().view(torch.uint8).tolist())
    return f"0x{raw[::-1].hex()}"


def float_bits(value: float) -> str:
    """Return the bits of a plain float as :func:`element_bits` returns those of an element."""
    return f"0x{struct.pack('>d', value).hex()}"


def element_json(element: Tensor) -> Any:
    """Return an element as a plain value; a complex one as two, and one that is no number as its bits."""
    if element.dtype is torch.float4_e2m1fn_x2:
        return element_bits(element)
    if element.is_complex():
        return [element_json(part) for part in torch.view_as_real(element.resolve_conj())]
    return element.item() if not element.is_floating_point() else float(element.to(torch.float64).item())
