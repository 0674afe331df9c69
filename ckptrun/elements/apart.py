"""How far numbers are from each other in value, beside the steps of ``distance``: absolutely, and relative to them.

Must not know files, nor print.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Apart", "apart"]


@dataclass(frozen=True, slots=True)
class Apart:
    """The largest differences; infinite where one of two is, and the other is not the same. NaNs take no part."""

    absolute: float
    relative: float
    """To the larger of the two."""

    def __or__(self, other: "Apart | None") -> "Apart":
        """Return the larger of both."""
        if other is None:
            return self
        return Apart(max(self.absolute, other.absolute), max(self.relative, other.relative))


def apart(one: Tensor, other: Tensor) -> Apart | None:
    """Return the largest differences between elements at the same places; None where no pair are numbers.

    Shapes:
        one, other: the same, of the same dtype.
    """
    try:
        mine, theirs = _wide(one), _wide(other)
    except (RuntimeError, NotImplementedError):
        # A dtype whose elements are packed, and no numbers of their own.
        return None
    are_numbers = ~(mine.isnan() | theirs.isnan())
    mine, theirs = mine[are_numbers], theirs[are_numbers]
    if not mine.numel():
        return None
    difference = torch.where(mine == theirs, 0.0, (mine - theirs).abs())
    largest = torch.maximum(mine.abs(), theirs.abs())
    relative = torch.where(difference == 0, 0.0, torch.where(difference.isinf(), math.inf, difference / largest))
    return Apart(float(difference.max()), float(relative.max()))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).reshape(-1)
