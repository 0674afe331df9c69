"""The fixed numbers of the digest: place weights and odd multipliers, each computed from its index alone.

Small tables are kept per device; nothing grows with the size of a tensor. Must not know tensors to be digested.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ckptrun.errors import InternalError

__all__ = ["LINES", "ROWS", "WORDS_PER_LINE", "Indices", "combine", "factors", "place_weights"]

WORDS_PER_LINE = 256

_COLUMNS = 4
_PAGE = 4096
_STREAM_SHIFT = 40
_COMBINE_STREAM = 4
LINES = 6
"""First stream of the line multipliers; what to pass as ``family``."""
ROWS = 10
"""First stream of the row multipliers."""

_Unsigned = npt.NDArray[np.uint64]
Indices = npt.NDArray[np.int64]


def _splitmix64(stream: int, indices: range | Indices) -> _Unsigned:
    """``u(stream, index)`` of the definition for each of ``indices``.

    Source: Steele, Lea, Flood, Fast Splittable Pseudorandom Number Generators, 2014 (with Stafford's finalizer).
    """
    z = np.asarray(indices, dtype=np.uint64) + np.uint64((stream << _STREAM_SHIFT) + 1)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _on(values: npt.NDArray[Any], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values)).to(device)


@lru_cache(maxsize=16)
def place_weights(device: torch.device) -> Tensor:
    """The weights g_c(l). Shape: (4, 256) float64.

    Raises:
        InternalError: A float64 matrix product on ``device`` does not add integers below 2^53 exactly.
    """
    weights = np.stack([_splitmix64(column, range(WORDS_PER_LINE)) >> np.uint64(49) for column in range(_COLUMNS)])
    signed = weights.astype(np.int64) - (1 << 14)
    signed[0] |= 1
    table = _on(signed.astype(np.float64), device)
    _require_exact(table)
    return table


def _require_exact(table: Tensor) -> None:
    # A library that emulates float64, or multiplies by Strassen's scheme, would give digests that no other machine
    # repeats. The lines that reach the largest sums tell.
    integers = table.to(torch.int64)
    signs = torch.where(integers >= 0, 2**31 - 1, -(2**31))
    lines = torch.cat([signs, -signs - 1, signs ^ 0x5A5A5A5A])
    expected = (integers[:, None] * lines[None]).sum(2)
    got = torch.mm(table, lines.to(torch.float64).t()).to(torch.int64)
    if not torch.equal(got, expected):
        raise InternalError(
            f"Digests cannot be computed on {table.device}: its float64 matrix product is not exact for integers "
            "below 2^53. Move the tensors to the CPU first."
        )


@lru_cache(maxsize=16)
def combine(device: torch.device) -> Tensor:
    """What turns the four weighted sums into each of the two sums. Shape: (2, 4) int64, bits of unsigned numbers."""
    rows = np.stack([_splitmix64(_COMBINE_STREAM + which, range(_COLUMNS)) for which in range(2)])
    rows[:, 0] |= np.uint64(1)
    rows[:, 1:] &= ~np.uint64(1)
    return _on(rows.view(np.int64), device)


def _odd(stream: int, indices: range | Indices) -> _Unsigned:
    return np.stack([_splitmix64(stream + which, indices) for which in range(2)]) | np.uint64(1)


@lru_cache(maxsize=16)
def _low(family: int) -> _Unsigned:
    return _odd(family, range(_PAGE))


@lru_cache(maxsize=64)
def _page(family: int, page: int, device: torch.device) -> Tensor:
    return _on((_low(family) * _odd(family + 2, range(page, page + 1))).view(np.int64), device)


def factors(family: int, indices: range | Indices, device: torch.device) -> Tensor:
    """The multipliers of lines or rows; ranges are fast. Shape: (2, len(indices)) int64, bits of unsigned numbers.

    Args:
        family: ``LINES`` or ``ROWS``.
        indices: Not empty.
        device: Where the result lies.
    """
    if not isinstance(indices, range):
        pages, places = np.divmod(indices, _PAGE)
        return _on((_low(family)[:, places] * _odd(family + 2, pages)).view(np.int64), device)
    first, last = indices.start // _PAGE, (indices.stop - 1) // _PAGE
    start, count = indices.start - first * _PAGE, len(indices)
    if first == last:
        return _page(family, first, device)[:, start : start + count]
    pages_of_range = [_page(family, page, device) for page in range(first, last + 1)]
    return torch.cat(pages_of_range, 1)[:, start : start + count]
