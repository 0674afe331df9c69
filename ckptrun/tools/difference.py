"""How two leaves differ: in kind, dtype, shape, value, or in which elements. Must not know files, nor print."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckptrun.tools.distance import has_steps, largest_distance
from ckptrun.tools.elements import element_bits, element_json
from ckptrun.tools.source import SourceLeaf
from ckptrun.values import canonical_bytes, encode

__all__ = ["Difference", "Elements", "Tally", "tensors_alike", "values_alike"]

_STEP_BYTES = 2**20
_UNSIGNED: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Elements:
    """Which elements of two tensors differ."""

    total: int
    differing: int
    first_index: tuple[int, ...]
    a: Tensor
    """The element there, of shape ()."""
    b: Tensor
    largest_ulp: int | None
    """See :mod:`ckptrun.tools.distance`; None for dtypes without a distance, and where only NaNs differ."""
    nans: int
    """Differing pairs with a NaN."""

    def to_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        first = {
            side: {"value": encode(element_json(element), name=side), "bits": element_bits(element)}
            for side, element in (("a", self.a), ("b", self.b))
        }
        return {
            "total": self.total,
            "differing": self.differing,
            "first": {"index": list(self.first_index), **first},
            "largest_ulp": self.largest_ulp,
            "nans": self.nans,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How two leaves of one name differ."""

    leaf: str
    what: tuple[str, ...]
    """``kind``: tensor and plain value; ``dtype``, ``shape``, ``elements``; ``value``."""
    a: dict[str, Any]
    """What the leaf is, as in JSON."""
    b: dict[str, Any]
    elements: Elements | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        elements = None if self.elements is None else self.elements.to_json()
        return {"leaf": self.leaf, "differs_in": list(self.what), "a": self.a, "b": self.b, "elements": elements}


def tensors_alike(name: str, a: SourceLeaf, b: SourceLeaf) -> Difference | None:
    """Return how two leaves differ before a byte of a tensor is read; None where they do not.

    Raises:
        UnsupportedLeafError: A plain value is none.
    """
    if a.is_tensor != b.is_tensor:
        what: tuple[str, ...] = ("kind",)
    else:
        what = tuple(
            field for field, one, other in (("dtype", a.dtype, b.dtype), ("shape", a.shape, b.shape)) if one != other
        )
    return Difference(leaf=name, what=what, a=_describe(a), b=_describe(b)) if what else None


def values_alike(name: str, a: SourceLeaf, b: SourceLeaf) -> Difference | None:
    """Return how two plain values differ: exactly, in their types and the bits of their floats too.

    Raises:
        UnsupportedLeafError: One of them is no plain value.
    """
    if canonical_bytes(a.value, name=name) == canonical_bytes(b.value, name=name):
        return None
    return Difference(leaf=name, what=("value",), a=_describe(a), b=_describe(b))


def _describe(leaf: SourceLeaf) -> dict[str, Any]:
    if leaf.is_tensor:
        return {"kind": "tensor", "dtype": leaf.dtype, "shape": list(leaf.shape or ())}
    value = leaf.value
    described = {
        "kind": "value",
        "type": type(value).__name__,
        "text": repr(value),
        "value": encode(value, name=leaf.name),
    }
    return described | ({"bits": f"0x{struct.pack('>d', value).hex()}"} if type(value) is float else {})


class Tally:
    """Counts the differing elements of two tensors of one dtype and shape, given slab by slab, in order."""

    def __init__(self, leaf: SourceLeaf) -> None:
        self._dtype = str(leaf.dtype)
        self._shape = tuple(leaf.shape or ())
        self._row_elements = math.prod(self._shape[1:])
        self._differing = 0
        self._first: tuple[int, Tensor, Tensor] | None = None
        self._largest_ulp: int | None = None
        self._nans = 0

    def add(self, first: int, a: Tensor, b: Tensor) -> None:
        """Compare a slab.

        Shapes:
            a, b: (rows, *shape[1:]), from row ``first`` on.
        """
        item = a.element_size()
        one, other = _raw(a), _raw(b)
        # In pieces that stay in a core's cache, and keep what is computed on the way small.
        for begin in range(0, one.size, _STEP_BYTES):
            pieces = one[begin : begin + _STEP_BYTES], other[begin : begin + _STEP_BYTES]
            if not _equal(*pieces):
                index = first * self._row_elements + begin // item
                self._add_differing(index, pieces[0], pieces[1], a.dtype)

    def _add_differing(self, index: int, one: NDArray[Any], other: NDArray[Any], dtype: torch.dtype) -> None:
        parts = 2 if dtype.is_complex else 1
        kind = _UNSIGNED[dtype.itemsize // parts]
        bits = one.view(kind), other.view(kind)
        differs = bits[0] != bits[1]
        places = np.flatnonzero(differs.reshape(-1, parts).any(axis=1))
        self._differing += places.size
        if self._first is None:
            at = int(places[0])
            self._first = index + at, _element(one, at, dtype), _element(other, at, dtype)
        if has_steps(self._dtype):
            distance = largest_distance(self._dtype, bits[0][differs], bits[1][differs])
            self._nans += distance.nans
            self._largest_ulp = max((u for u in (self._largest_ulp, distance.ulp) if u is not None), default=None)

    def difference(self, name: str) -> Difference | None:
        """Return what was found; None where all elements are equal."""
        if self._first is None:
            return None
        index, a, b = self._first
        described = {"kind": "tensor", "dtype": self._dtype, "shape": list(self._shape)}
        elements = Elements(
            total=math.prod(self._shape),
            differing=self._differing,
            first_index=_unravel(index, self._shape),
            a=a,
            b=b,
            largest_ulp=self._largest_ulp,
            nans=self._nans,
        )
        return Difference(leaf=name, what=("elements",), a=described, b=dict(described), elements=elements)


def _element(raw: NDArray[Any], at: int, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(raw[at * dtype.itemsize : (at + 1) * dtype.itemsize].copy()).view(dtype)[0]


def _raw(tensor: Tensor) -> NDArray[np.uint8]:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy()


def _equal(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> bool:
    whole = one.size // 8 * 8
    return np.array_equal(one[:whole].view(np.uint64), other[:whole].view(np.uint64)) and np.array_equal(
        one[whole:], other[whole:]
    )


def _unravel(index: int, shape: Sequence[int]) -> tuple[int, ...]:
    result: list[int] = []
    for size in reversed(shape):
        index, at = divmod(index, size)
        result.append(at)
    return tuple(reversed(result))
