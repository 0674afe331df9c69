"""How two leaves differ: in kind, dtype, shape, value, or in which elements. Must not know files, nor print."""

import math
import struct
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ckptrun.elements.text import element_bits, element_json
from ckptrun.elements.unequal import index_of, unequal_pieces
from ckptrun.tools.source import SourceLeaf
from ckptrun.values import canonical_bytes, encode

__all__ = ["Difference", "Elements", "Tally", "tensors_alike", "values_alike"]


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
    """See :mod:`ckptrun.elements.distance`; None for dtypes without a distance, and where only NaNs differ."""
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
        for piece in unequal_pieces(a, b):
            self._differing += piece.places.size
            if self._first is None:
                at = int(piece.places[0])
                self._first = first * self._row_elements + piece.first + at, *piece.elements(at)
            distance = piece.distance
            if distance is not None:
                self._nans += distance.nans
                self._largest_ulp = max((u for u in (self._largest_ulp, distance.ulp) if u is not None), default=None)

    def difference(self, name: str) -> Difference | None:
        """Return what was found; None where all elements are equal."""
        if self._first is None:
            return None
        number, a, b = self._first
        described = {"kind": "tensor", "dtype": self._dtype, "shape": list(self._shape)}
        elements = Elements(
            total=math.prod(self._shape),
            differing=self._differing,
            first_index=index_of(number, self._shape),
            a=a,
            b=b,
            largest_ulp=self._largest_ulp,
            nans=self._nans,
        )
        return Difference(leaf=name, what=("elements",), a=described, b=dict(described), elements=elements)
