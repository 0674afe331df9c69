"""How two leaves differ: in kind, dtype, shape, value, or in which elements. Must not know files, nor print."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ckptrun.elements.apart import Apart, apart
from ckptrun.elements.text import element_bits, element_json, float_bits
from ckptrun.elements.unequal import index_of, unequal_pieces
from ckptrun.formats.open_source import SourceLeaf
from ckptrun.values import encode, same_value

__all__ = ["Elements", "LeafDifference", "Tally", "apart_json", "tensors_alike", "values_alike"]


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
    apart: Apart | None = None
    """The largest differences in value; None where no differing pair are numbers."""

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
            **apart_json(self.apart),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LeafDifference:
    """How two leaves of one name differ."""

    leaf: str
    what: tuple[str, ...]
    """``kind``: tensor and plain value; ``dtype``, ``shape``, ``elements``; ``value``."""
    a: dict[str, Any]
    """What the leaf is, as in JSON."""
    b: dict[str, Any]
    elements: Elements | None = None
    apart: Apart | None = None
    """Of two plain numbers."""

    @property
    def badness(self) -> tuple[bool, float, float]:
        """The larger, the worse: what cannot be subtracted comes first, then numbers by their relative difference."""
        apart = self.apart if self.elements is None else self.elements.apart
        if apart is None:
            return True, math.inf, math.inf
        has_nan = self.elements is not None and self.elements.nans > 0
        return has_nan, apart.relative, apart.absolute

    def to_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        elements = None if self.elements is None else self.elements.to_json()
        found = {"leaf": self.leaf, "differs_in": list(self.what), "a": self.a, "b": self.b, "elements": elements}
        return found | (apart_json(self.apart) if self.apart is not None else {})


def apart_json(found: Apart | None) -> dict[str, Any]:
    """Return it for ``--json``."""
    if found is None:
        return {"largest_absolute": None, "largest_relative": None}
    return {
        "largest_absolute": encode(found.absolute, name="largest_absolute"),
        "largest_relative": encode(found.relative, name="largest_relative"),
    }


def tensors_alike(name: str, a: SourceLeaf, b: SourceLeaf) -> LeafDifference | None:
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
    return LeafDifference(leaf=name, what=what, a=_describe(a), b=_describe(b)) if what else None


def values_alike(name: str, a: SourceLeaf, b: SourceLeaf) -> LeafDifference | None:
    """Return how two plain values differ: exactly, in their types and the bits of their floats too.

    Raises:
        UnsupportedLeafError: One of them is no plain value.
    """
    if same_value(a.value, b.value, name=name):
        return None
    one, other = a.value, b.value
    are_floats = type(one) is float and type(other) is float
    found = (
        apart(torch.tensor(one, dtype=torch.float64), torch.tensor(other, dtype=torch.float64)) if are_floats else None
    )
    return LeafDifference(leaf=name, what=("value",), a=_describe(a), b=_describe(b), apart=found)


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
    return described | ({"bits": float_bits(value)} if type(value) is float else {})


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
        self._apart: Apart | None = None

    def add(self, first: int, a: Tensor, b: Tensor) -> None:
        """Compare a slab.

        Shapes:
            a, b: (rows, *shape[1:]), from row ``first`` on.
        """
        for piece in unequal_pieces(a, b):
            self._differing += piece.places.size
            if self._first is None:
                number, one, other = piece.first_differing
                self._first = first * self._row_elements + number, one, other
            found = apart(*piece.differing())
            self._apart = self._apart if found is None else found | self._apart
            distance = piece.distance
            if distance is not None:
                self._nans += distance.nans
                self._largest_ulp = max((u for u in (self._largest_ulp, distance.ulp) if u is not None), default=None)

    def difference(self, name: str) -> LeafDifference | None:
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
            apart=self._apart,
        )
        return LeafDifference(leaf=name, what=("elements",), a=described, b=dict(described), elements=elements)
