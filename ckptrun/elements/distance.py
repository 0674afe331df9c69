"""How far two floats are from each other in ULP: in how many steps from one representable number to the next.

Bits of a float, without the sign, count up in the order of the numbers; so the steps between two numbers of one sign
are the difference of their bits, and across zero their sum. That settles the special cases:

- ``0.0`` and ``-0.0`` are one number with two spellings: 0 steps, though their bits differ;
- an infinity is one step past the largest finite number;
- a NaN is at no distance from anything, itself included: it is counted, and takes no part.

Must not know files, nor print.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Distance", "has_steps", "largest_distance"]

Bits = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the numbers of a dtype lie among its bit patterns."""

    sign: int
    """The bit of the sign; 0 where there is none."""
    largest: int
    """The largest number, infinity included, as bits. What is above, without its sign, is a NaN."""
    nan: int | None = None
    """The only NaN, of dtypes that have no negative zero: its place is taken."""


_LAYOUTS = {
    "float64": _Layout(1 << 63, 0x7FF0_0000_0000_0000),
    "float32": _Layout(1 << 31, 0x7F80_0000),
    "float16": _Layout(1 << 15, 0x7C00),
    "bfloat16": _Layout(1 << 15, 0x7F80),
    "float8_e5m2": _Layout(1 << 7, 0x7C),
    "float8_e4m3fn": _Layout(1 << 7, 0x7E),
    "float8_e5m2fnuz": _Layout(1 << 7, 0x7F, nan=0x80),
    "float8_e4m3fnuz": _Layout(1 << 7, 0x7F, nan=0x80),
    "float8_e8m0fnu": _Layout(0, 0xFE),
}
_PARTS = {"complex128": "float64", "complex64": "float32", "complex32": "float16"}


@dataclass(frozen=True, slots=True)
class Distance:
    """How far elements are apart."""

    ulp: int | None
    """The largest distance; None where a NaN is in every pair."""
    nans: int
    """In how many pairs at least one is NaN; the two parts of a complex number are pairs of their own."""


def has_steps(dtype: str) -> bool:
    """Whether numbers of this dtype have a distance in ULP: floats, and complex numbers part by part."""
    return dtype in _LAYOUTS or dtype in _PARTS


def largest_distance(dtype: str, one: Bits, other: Bits) -> Distance:
    """Return the largest distance between elements that stand at the same place.

    Shapes:
        one, other: (count,), unsigned integers as wide as a float of ``dtype``, or as one part of a complex number.
    """
    layout = _LAYOUTS[_PARTS.get(dtype, dtype)]
    kind = one.dtype.type
    sign, top = kind(layout.sign), kind(layout.largest)
    sizes = [bits & ~sign for bits in (one, other)]
    if layout.nan is None:
        is_nan = (sizes[0] > top) | (sizes[1] > top)
    else:
        is_nan = (one == kind(layout.nan)) | (other == kind(layout.nan))
    nans = int(np.count_nonzero(is_nan))
    if nans == one.size:
        return Distance(None, nans)
    # No sum is too large for the type: the largest number has its top bit clear.
    across = sizes[0] + sizes[1]
    along = np.maximum(*sizes) - np.minimum(*sizes)
    steps = np.where(((one ^ other) & sign) != 0, across, along)
    return Distance(int(steps[~is_nan].max()), nans)
