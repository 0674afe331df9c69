"""From a chunk to the two sums of the definition, from the two sums to hex digits; no torch.distributed.

The sums of the chunks of a leaf add up to the sums of the leaf, so a tool can digest a leaf that never is in memory as
a whole. Must not know ranks, meshes or files.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ckptrun.digest.tally import Tally

__all__ = ["Sums", "chunk_sums", "finish", "finish_value"]

_MASK = (1 << 64) - 1
_HEAD = "ckptrun digest 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """The two sums of some chunks of one leaf, each from 0 to 2^64 - 1. ``Sums()`` is that of no chunk."""

    first: int = 0
    second: int = 0

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(first=(self.first + other.first) & _MASK, second=(self.second + other.second) & _MASK)


def chunk_sums(chunk: Tensor, *, offsets: Sequence[int], shape: Sequence[int]) -> Sums:
    """Sum up one chunk; local, on the chunk's device.

    Add the sums of chunks that cover the full tensor exactly once, then call :func:`finish`. ckptrun itself sums up
    many leaves at once (``Tally``); this is for one chunk in the hand of a tool, and for tests of the definition.

    Args:
        chunk: A plain tensor, any strides.
        offsets: Where the chunk starts in the full tensor, per dim.
        shape: Of the full tensor.

    Raises:
        ValueError: The chunk does not lie inside the full tensor.
    """
    _require_inside(tuple(chunk.shape), tuple(offsets), tuple(shape))
    with torch.no_grad():
        tally = Tally(1)
        tally.add(0, chunk.detach(), offsets=offsets, shape=shape)
        first, second = tally.totals()[0].tolist()
    return Sums() + Sums(first=first, second=second)


def _require_inside(sizes: tuple[int, ...], offsets: tuple[int, ...], shape: tuple[int, ...]) -> None:
    inside = len(sizes) == len(offsets) == len(shape) and all(
        begin >= 0 and begin + size <= full for size, begin, full in zip(sizes, offsets, shape, strict=True)
    )
    if not inside:
        raise ValueError(f"A chunk of sizes {sizes} at offsets {offsets} does not lie inside shape {shape}.")


def finish(sums: Sums, *, dtype: torch.dtype, shape: Sequence[int]) -> str:
    """Return the digest of the leaf with this dtype, full shape and these sums: 32 hex digits."""
    name = str(dtype).removeprefix("torch.")
    sizes = ",".join(str(int(size)) for size in shape)
    text = f"{_HEAD}\n{name}\n{sizes}\n{sums.first:016x}{sums.second:016x}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def finish_value(canonical: bytes) -> str:
    """Return the digest of a plain value from its canonical bytes: 32 hex digits."""
    return hashlib.blake2b(f"{_HEAD}\nvalue\n".encode() + canonical, digest_size=16).hexdigest()
