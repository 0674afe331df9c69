"""The first part in which two leaves differ: an element of a tensor, or an entry of a plain value. By bits, not values.

Must not know files or ranks.
"""

import io
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ckptrun.elements.distance import largest_distance
from ckptrun.elements.text import element_bits, element_text, float_bits
from ckptrun.elements.unequal import index_of, unequal_pieces
from ckptrun.evidence.difference import Difference
from ckptrun.values import encode, same_value

__all__ = ["DifferingPart", "first_element", "first_entry"]

_ABSENT = object()
# Longer texts and streams of bytes are taken apart, and shown from the first difference on.
_WHOLE = 64
_LONGEST_TEXT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferingPart:
    """Where two leaves differ first, and what stands there."""

    index: tuple[int, ...] | None = None
    """In the full tensor; None for a plain value."""
    entry: tuple[str | int, ...] | None = None
    """Keys and indices that lead to the part of a plain value, () for all of it; None for a tensor."""
    expected: Any
    """Of a tensor: the number, as text that reads back as the same. Of a plain value: as in a manifest, cut where it is
    long, or ``absent``."""
    got: Any
    expected_bits: str | None = None
    """As hex, of a tensor's element and of floats."""
    got_bits: str | None = None
    ulp: int | None = None
    """How many steps from one representable number to the next lie between; None where that has no meaning.

    0 for 0.0 and -0.0. Of a complex number: the larger one of its two parts.
    """

    def narrowed(self, difference: Difference) -> Difference:
        """Return the difference of the leaf, down to this part."""
        found = replace(
            difference,
            index=None if self.index is None else list(self.index),
            expected=self.expected,
            got=self.got,
            ulp=self.ulp,
        )
        entry = None if self.entry is None else list(self.entry)
        return found.with_details(entry=entry, expected_bits=self.expected_bits, got_bits=self.got_bits)

    def __str__(self) -> str:
        place = "" if self.index in (None, ()) else f"at {list(self.index or ())} "
        place = f"at {'.'.join(map(str, self.entry))} " if self.entry else place
        expected = f"{self.expected}" if self.expected_bits is None else f"{self.expected} ({self.expected_bits})"
        got = f"{self.got}" if self.got_bits is None else f"{self.got} ({self.got_bits})"
        return f"{place}expected {expected}, got {got}{'' if self.ulp is None else f', {self.ulp} ULP apart'}"


def first_element(expected: Tensor, got: Tensor, *, offsets: Sequence[int] | None = None) -> DifferingPart | None:
    """Return the first element, in row-major order, that has other bits; None where there is none.

    Memory for a few MiB is needed beside the tensors, whatever their strides.

    Args:
        expected: In host memory.
        got: Likewise.
        offsets: Where the two start in the full tensor; at its start where none are given.

    Shapes:
        expected, got: the same, of the same dtype.

    Raises:
        ValueError: They are not of the same dtype and shape, or ``offsets`` is not one number for each dim.
    """
    offsets = tuple(offsets) if offsets is not None else (0,) * expected.dim()
    if (expected.dtype, expected.shape) != (got.dtype, got.shape) or len(offsets) != expected.dim():
        raise ValueError(
            f"Elements cannot be compared: expected {expected.dtype} {tuple(expected.shape)}, got {got.dtype} "
            f"{tuple(got.shape)}, at offsets {offsets}."
        )
    piece = next(unequal_pieces(expected, got), None)
    if piece is None:
        return None
    number, one, other = piece.first_differing
    index = index_of(number, expected.shape)
    # Of these two alone: the piece has others that may be farther apart.
    distance = next(unequal_pieces(one, other)).distance
    return DifferingPart(
        index=tuple(offset + at for offset, at in zip(offsets, index, strict=True)),
        expected=element_text(one),
        got=element_text(other),
        expected_bits=element_bits(one),
        got_bits=element_bits(other),
        ulp=None if distance is None else distance.ulp,
    )


def first_entry(expected: Any, got: Any, *, name: str) -> DifferingPart | None:
    """Return the first entry of a plain value that differs, in type or in bits; None where there is none.

    Where dicts have the same entries in another order, their keys are shown: the order may decide what comes next.

    Args:
        expected: A plain value (see :mod:`ckptrun.values`).
        got: Likewise.
        name: Of the leaf, for messages.

    Raises:
        UnsupportedLeafError: One of them is no plain value.
    """
    if same_value(expected, got, name=name):
        return None
    entry: list[str | int] = []
    while True:
        of_both = _entries(expected, got)
        if of_both is None:
            break
        key = next((key for key in {**of_both[0], **of_both[1]} if not _same(*of_both, key, name)), None)
        if key is None:
            expected, got = list(expected), list(got)
            break
        entry.append(key)
        expected, got = (entries.get(key, _ABSENT) for entries in of_both)
    are_floats = type(expected) is float and type(got) is float
    return DifferingPart(
        entry=tuple(entry),
        expected=_shown(expected, name),
        got=_shown(got, name),
        expected_bits=_float_bits(expected),
        got_bits=_float_bits(got),
        ulp=_float_steps(expected, got) if are_floats else None,
    )


_Entries = Mapping[Any, Any]


def _entries(one: Any, other: Any) -> tuple[_Entries, _Entries] | None:
    """What the two are made of, by key or index; None where they are of different kinds, or have no parts."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one, other
    if type(one) is not type(other):
        return None
    if isinstance(one, list | tuple):
        return dict(enumerate(one)), dict(enumerate(other))
    if isinstance(one, io.BytesIO):
        return _stream(one), _stream(other)
    if isinstance(one, bytes | str) and max(len(one), len(other)) > _WHOLE:
        shorter = min(len(one), len(other))
        at = next((at for at in range(shorter) if one[at] != other[at]), shorter)
        return _from(one, at), _from(other, at)
    return None


def _stream(stream: io.BytesIO) -> _Entries:
    return {"content": stream.getvalue(), "position": stream.tell()}


def _from(text: bytes | str, at: int) -> _Entries:
    return {at: text[at : at + _WHOLE]} if at < len(text) else {}


def _same(one: _Entries, other: _Entries, key: Hashable, name: str) -> bool:
    return key in one and key in other and same_value(one[key], other[key], name=name)


def _shown(value: Any, name: str) -> Any:
    if value is _ABSENT:
        return "absent"
    encoded = encode(value, name=name)
    text = json.dumps(encoded)
    return encoded if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}..."


def _float_bits(value: Any) -> str | None:
    return float_bits(value) if type(value) is float else None


def _float_steps(one: float, other: float) -> int | None:
    bits = (np.array([value], np.float64).view(np.uint64) for value in (one, other))
    return largest_distance("float64", *bits).ulp
