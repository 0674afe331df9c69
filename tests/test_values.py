"""Plain values survive JSON with type and bits; what is not plain is refused by name."""

import json
import struct

import numpy
import pytest

from ckptrun.errors import ManifestError, UnsupportedLeafError
from ckptrun.values import canonical_bytes, decode, encode

VALUES = [
    None, True, False, 0, 1, -(2**80), 1.0, -0.0, 1e-310, 0.1, "", "ä$", b"", b"\x00\xff", [], {}, (), [1, [2.5, (None,)]],
    {"a": {"b": []}}, {1: "x", "1": "y"}, {"$bytes": "no"}, (1, (2,)), [float("inf"), -float("inf")],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_value_comes_back_the_same_through_json(value) -> None:
    back = decode(json.loads(json.dumps(encode(value, name="leaf"), allow_nan=False)), name="leaf")
    assert canonical_bytes(back, name="leaf") == canonical_bytes(value, name="leaf")
    assert repr(back) == repr(value)


@pytest.mark.parametrize("bits", [0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000001, 0x7FFDEADBEEF00000])
def test_nan_comes_back_with_its_bits(bits) -> None:
    value = struct.unpack(">d", bits.to_bytes(8, "big"))[0]
    back = decode(json.loads(json.dumps(encode(value, name="leaf"))), name="leaf")
    assert struct.pack(">d", back) == bits.to_bytes(8, "big")


def test_values_of_different_type_or_bits_have_different_canonical_bytes() -> None:
    alike = [0, 0.0, -0.0, False, None, "0", b"0", [], (), {}, [0], (0,), {"0": 0}, {0: 0}, "", b""]
    assert len({canonical_bytes(value, name="leaf") for value in alike}) == len(alike)


@pytest.mark.parametrize("value", [object(), {1.5: 2}, numpy.float64(1.0), [object()], {"a": {2j}}, 1j], ids=repr)
def test_what_is_not_plain_is_refused_with_the_leafs_name_and_type(value) -> None:
    with pytest.raises(UnsupportedLeafError, match=r"optimizer\.x"):
        encode(value, name="optimizer.x")


def test_endless_nesting_is_refused() -> None:
    value: list = []
    value.append(value)
    with pytest.raises(UnsupportedLeafError, match="nested"):
        encode(value, name="leaf")


@pytest.mark.parametrize(
    "encoded", [{"$what": 1}, {"$bytes": "?"}, {"$tuple": 3}, {"$float": "x"}, {"$nan": "00"}, {"$nan": "zz"}], ids=repr
)
def test_a_damaged_encoding_is_a_manifest_error(encoded) -> None:
    with pytest.raises(ManifestError, match="leaf"):
        decode(encoded, name="leaf")
