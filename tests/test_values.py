"""Plain values survive JSON with type and bits; what is not plain is refused by name."""

import json
import struct
import sys
from collections import ChainMap, Counter, OrderedDict, UserDict, defaultdict, namedtuple
from enum import IntEnum

import numpy
import pytest

from ckptrun.errors import ManifestError, UnsupportedLeafError
from ckptrun.values import canonical_bytes, decode, encode

VALUES = [
    None, True, False, 0, 1, -(2**80), 1.0, -0.0, 1e-310, 0.1, "", "ä$", b"", b"\x00\xff", [], {}, (), [1, [2.5, (None,)]],
    {1.5: "x", None: 0, True: [], (0, ("a", b"b")): {-0.0: 1}}, OrderedDict(b=1, a={2: 3}), Counter({5: 2, 3: 1}), Counter(),
    defaultdict(int, x=1), defaultdict(None), [defaultdict(list, {1: [2]})], (OrderedDict(),), 10**4299, -(10**4300) + 1,
    {"a": {"b": []}}, {1: "x", "1": "y"}, {"$bytes": "no"}, (1, (2,)), [float("inf"), -float("inf")],
]  # fmt: skip


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_value_comes_back_the_same_through_json(value) -> None:
    back = decode(json.loads(json.dumps(encode(value, name="leaf"), allow_nan=False)), name="leaf")
    assert canonical_bytes(back, name="leaf") == canonical_bytes(value, name="leaf")
    assert repr(back) == repr(value)
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "value",
    [
        defaultdict(lambda: 0),
        UserDict(a=1),
        ChainMap({}),
        type("Mine", (dict,), {})(a=1),
        type("Mine", (Counter,), {})("aab"),
        namedtuple("Point", "x y")(1, 2),
        {IntEnum("Phase", "A").A: 1},
        {type("Text", (str,), {})("a"): 1},
        {frozenset(): 1},
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_come_back_as_something_else_is_refused_by_name(value) -> None:
    for whole in (value, [value], {"a": (value,)}):
        with pytest.raises(UnsupportedLeafError, match=r"optimizer\.x"):
            encode(whole, name="optimizer.x")


@pytest.mark.parametrize(
    "value", [10**4300, -(10**4300), [1, {"n": 10**9000}], {10**5000: 1}, ((10**4300,),)], ids=type
)
def test_an_integer_that_python_does_not_write_is_refused_by_name(value) -> None:
    with pytest.raises(UnsupportedLeafError, match=r"'counter'.* more than 4300 digits"):
        encode(value, name="counter")


def test_a_process_that_writes_fewer_digits_refuses_more_by_name() -> None:
    limit = sys.get_int_max_str_digits()
    try:
        sys.set_int_max_str_digits(700)
        with pytest.raises(UnsupportedLeafError, match="more than 700 digits"):
            encode(10**700, name="counter")
        assert decode(json.loads(json.dumps(encode(10**700 - 1, name="counter"))), name="counter") == 10**700 - 1
    finally:
        sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize("bits", [0x7FF8000000000000, 0xFFF8000000000000, 0x7FF8000000000001, 0x7FFDEADBEEF00000])
def test_nan_comes_back_with_its_bits(bits) -> None:
    value = struct.unpack(">d", bits.to_bytes(8, "big"))[0]
    back = decode(json.loads(json.dumps(encode(value, name="leaf"))), name="leaf")
    assert struct.pack(">d", back) == bits.to_bytes(8, "big")


def test_values_of_different_type_or_bits_have_different_canonical_bytes() -> None:
    alike = [
        Counter(),
        OrderedDict(),
        defaultdict(None),
        defaultdict(int),
        {True: 0},
        {1.0: 0},
        0,
        0.0,
        -0.0,
        False,
        None,
        "0",
        b"0",
        [],
        (),
        {},
        [0],
        (0,),
        {"0": 0},
        {0: 0},
        "",
        b"",
    ]
    assert len({canonical_bytes(value, name="leaf") for value in alike}) == len(alike)


@pytest.mark.parametrize("value", [object(), {1j: 2}, numpy.float64(1.0), [object()], {"a": {2j}}, 1j])
def test_what_is_not_plain_is_refused_with_the_leafs_name_and_type(value) -> None:
    with pytest.raises(UnsupportedLeafError, match=r"optimizer\.x"):
        encode(value, name="optimizer.x")


def test_endless_nesting_is_refused() -> None:
    value: list = []
    value.append(value)
    with pytest.raises(UnsupportedLeafError, match="nested"):
        encode(value, name="leaf")


@pytest.mark.parametrize(
    "encoded",
    [
        {"$what": 1},
        {"$bytes": "?"},
        {"$tuple": 3},
        {"$float": "x"},
        {"$nan": "00"},
        {"$nan": "zz"},
        {"$dict": [[[], 1]]},
        {"$counter": 1},
        {"$defaultdict": ["exec", []]},
        {"$tensor": ["float32", [-1], ""]},
    ],
    ids=repr,
)
def test_a_damaged_encoding_is_a_manifest_error(encoded) -> None:
    with pytest.raises(ManifestError, match="leaf"):
        decode(encoded, name="leaf")
