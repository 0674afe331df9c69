"""The first differing element is found by its bits, whatever dtype, shape and strides; so is that of a plain value."""

import io
import math
import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ckptrun.checks.element import first_element, first_entry
from ckptrun.elements.unequal import unequal_pieces
from ckptrun.evidence.difference import Difference
from tests.support.bits import bits, random_tensor

pytestmark = pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")

FLOATS = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu"
COMPLEX = "complex32 complex64 complex128"
OTHERS = "float4_e2m1fn_x2 int64 int32 int16 int8 uint64 uint32 uint16 uint8"
DTYPES = f"{FLOATS} {COMPLEX} {OTHERS}".split()


def flipped(tensor: Tensor, number: int, byte: int = 0, bit: int = 0) -> Tensor:
    """A copy in which element ``number`` has another bit."""
    raw = tensor.contiguous().view(-1).view(torch.uint8).clone()
    raw[number * tensor.element_size() + byte] ^= 1 << bit
    return raw.view(tensor.dtype).view(tensor.shape)


def element_bytes(text: str) -> bytes:
    """Bits as shown -> bytes as they lie in memory."""
    return b"".join(bytes.fromhex(part.removeprefix("0x"))[::-1] for part in text.split())


@pytest.mark.parametrize("name", DTYPES)
def test_one_flipped_bit_is_found_in_every_dtype(name: str) -> None:
    expected = random_tensor(getattr(torch, name), (5, 3, 7), 1)
    for number in (0, 52, 104):
        for byte in range(expected.element_size()):
            got = flipped(expected, number, byte, bit=number % 8)
            found = first_element(expected, got)
            assert found is not None
            assert found.index == (number // 21, number // 7 % 3, number % 7)
            raw = [t.view(-1).view(torch.uint8).numpy().tobytes() for t in (expected, got)]
            item = expected.element_size()
            assert element_bytes(found.expected_bits or "") == raw[0][number * item : (number + 1) * item]
            assert element_bytes(found.got_bits or "") == raw[1][number * item : (number + 1) * item]
            assert found.ulp is None or name in f"{FLOATS} {COMPLEX}".split()
    assert first_element(expected, expected.clone()) is None


@pytest.mark.parametrize("name", [*DTYPES, "bool"])
def test_a_tensor_without_dims_and_an_empty_one(name: str) -> None:
    one = torch.tensor([1], dtype=torch.uint8).repeat(getattr(torch, name).itemsize).view(getattr(torch, name))[0]
    other = torch.zeros(1, dtype=torch.uint8).repeat(one.element_size()).view(one.dtype)[0]
    found = first_element(one, other)
    assert found is not None
    assert found.index == ()
    assert first_element(one, one) is None
    empty = torch.empty(0, 3, dtype=one.dtype)
    assert first_element(empty, empty) is None


def test_bool_and_int_are_told_by_value() -> None:
    found = first_element(torch.tensor([True, False]), torch.tensor([True, True]))
    assert found is not None
    assert (found.index, found.expected, found.got, found.expected_bits, found.ulp) == (
        (1,),
        "False",
        "True",
        "0x00",
        None,
    )
    found = first_element(torch.tensor([2**63 - 1]), torch.tensor([-1]))
    assert found is not None
    assert (found.expected, found.got_bits) == ("9223372036854775807", "0x" + "f" * 16)


@pytest.mark.parametrize(
    ("expected", "got", "ulp"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0]), 0),
        (torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]), 1),
        (torch.tensor([1.0], dtype=torch.bfloat16), torch.tensor([1.0 + 2**-6], dtype=torch.bfloat16), 2),
        (torch.tensor([0x7FC00000], dtype=torch.int32), torch.tensor([0x7FC00001], dtype=torch.int32), None),
        (torch.tensor([1 + 2j]), torch.tensor([1 + (2 + 2**-22) * 1j]), 1),
        (torch.tensor([448.0], dtype=torch.float8_e4m3fn), torch.tensor([416.0], dtype=torch.float8_e4m3fn), 1),
    ],
)
def test_bits_count_and_the_distance_is_that_of_this_element(expected: Tensor, got: Tensor, ulp: int | None) -> None:
    if expected.dtype is torch.int32:
        expected, got = expected.view(torch.float32), got.view(torch.float32)
    pad = torch.ones(2, dtype=torch.float32).to(expected.dtype)
    # A later element is much farther away.
    far = torch.tensor([-1.0, 1.0]).to(expected.dtype)
    found = first_element(torch.cat([pad, expected, pad]), torch.cat([pad, got, far]))
    assert found is not None
    assert found.index == (2,)
    assert found.ulp == ulp
    assert found.expected_bits != found.got_bits


def test_text_says_where_what_and_how_far() -> None:
    found = first_element(torch.tensor([[1.5, 0.1]]), torch.tensor([[1.5, 0.25]]), offsets=(4, 8))
    assert str(found) == "at [4, 9] expected 0.1 (0x3dcccccd), got 0.25 (0x3e800000), 11744051 ULP apart"
    assert found is not None
    narrowed = found.narrowed(Difference.of_leaf("model.weight", step=4, rank=1, expected="a digest", got="another"))
    assert narrowed.as_json() == {
        "step": 4,
        "rank": 1,
        "component": "model",
        "leaf": "model.weight",
        "index": [4, 9],
        "entry": None,
        "expected": "0.1",
        "got": "0.25",
        "ulp": 11744051,
        "expected_bits": "0x3dcccccd",
        "got_bits": "0x3e800000",
    }


@pytest.mark.parametrize(
    ("got", "offsets"),
    [(torch.zeros(2, dtype=torch.float64), None), (torch.zeros(3), None), (torch.zeros(2), (1, 1))],
)
def test_what_is_not_alike_cannot_be_compared(got: Tensor, offsets: Any) -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        first_element(torch.zeros(2), got, offsets=offsets)


@st.composite
def views(draw: st.DrawFn) -> tuple[Tensor, Tensor, int]:
    """Two tensors of one kind, each with strides of its own, and the number of the first element that differs."""
    name = draw(st.sampled_from(DTYPES))
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=0, max_size=4)))
    base = random_tensor(getattr(torch, name), shape, draw(st.integers(0, 1000)))
    first, second = sorted(draw(st.lists(st.integers(0, base.numel() - 1), min_size=2, max_size=2)))
    byte = draw(st.integers(0, base.element_size() - 1))
    changed = flipped(base, first, byte, draw(st.integers(0, 7)))
    if second > first:
        changed = flipped(changed, second)
    order = draw(st.permutations(range(len(shape))))
    back = [order.index(dim) for dim in range(len(shape))]
    # The same elements, laid out along the dims in another order.
    strided = changed.permute(order).contiguous().permute(back) if shape else changed
    return base.requires_grad_(name in ("float32", "complex64")), strided, first


@settings(max_examples=150, deadline=None)
@given(views())
def test_strides_do_not_matter(case: tuple[Tensor, Tensor, int]) -> None:
    base, strided, first = case
    found = first_element(base, strided)
    assert found is not None
    index = found.index or ()
    number = 0
    for at, size in zip(index, base.shape, strict=True):
        number = number * size + at
    assert number == first
    assert bits(base.detach()[index]) != bits(strided[index])


def test_conjugated_and_negated_views_are_compared_by_what_they_say() -> None:
    z = torch.tensor([1 + 2j, 3 - 4j])
    assert first_element(z.conj(), z.conj().resolve_conj()) is None
    assert first_element(z.conj().imag, -z.imag) is None
    found = first_element(z.conj(), z)
    assert found is not None
    assert (found.index, found.expected, found.got) == ((0,), "1.0-2.0j", "1.0+2.0j")


def test_pieces_are_cut_where_a_tensor_does_not_lie_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptrun.elements.unequal._COPY_BYTES", 64)
    monkeypatch.setattr("ckptrun.elements.unequal._PIECE_BYTES", 32)
    base = torch.arange(3 * 40 * 5, dtype=torch.int32).view(3, 40, 5)
    for number in range(0, base.numel(), 7):
        other = flipped(base, number).transpose(0, 1).contiguous().transpose(0, 1)
        (piece,) = unequal_pieces(base, other)
        assert [piece.first + int(place) for place in piece.places] == [number]


MEASURE = """
import pathlib, torch
from ckptrun.checks.element import first_element
def peak():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
a, b = torch.ones(5000, 5000), torch.ones(5000, 5000).t()
a[-1, -1] = 2
first_element(a[:10], a[1:11])
before = peak()
assert first_element(a, b).index == (4999, 4999)
print(peak() - before)
"""


def test_memory_is_bounded_for_any_strides() -> None:
    ended = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True)
    assert int(ended.stdout) < 48 * 2**20


NAN = float("nan")


@pytest.mark.parametrize(
    ("expected", "got", "entry", "shown"),
    [
        (1, 2, (), (1, 2)),
        (1, True, (), (1, True)),
        (1, 1.0, (), (1, 1.0)),
        ([1], (1,), (), ([1], {"$tuple": [1]})),
        ({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, ("a", 1, "b"), (2, 3)),
        ({"a": 1}, {"a": 1, "c": None}, ("c",), ("absent", None)),
        ({"a": 1, "c": 2}, {"c": 2}, ("a",), (1, "absent")),
        ({3: "x"}, {3: "y"}, (3,), ("x", "y")),
        ({3: "x"}, {"3": "x"}, (3,), ("x", "absent")),
        ([1, 2, 3], [1, 2], (2,), (3, "absent")),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, (), (["a", "b"], ["b", "a"])),
        ([0.0], [-0.0], (0,), (0.0, -0.0)),
        ([1.0, NAN], [1.0, 1.0], (1,), ({"$nan": "7ff8000000000000"}, 1.0)),
        (b"ab", b"ac", (), ({"$bytes": "YWI="}, {"$bytes": "YWM="})),
        ("a" * 5000 + "b", "a" * 5000 + "c", (5000,), ("b", "c")),
        (b"\0" * 5000, b"\0" * 5001, (5000,), ("absent", {"$bytes": "AA=="})),
        (io.BytesIO(b"ab"), io.BytesIO(b"ad"), ("content",), ({"$bytes": "YWI="}, {"$bytes": "YWQ="})),
    ],
)
def test_the_entry_of_a_plain_value_that_differs(expected: Any, got: Any, entry: Any, shown: Any) -> None:
    found = first_entry(expected, got, name="x")
    assert found is not None
    assert found.index is None
    assert found.entry == entry
    assert repr((found.expected, found.got)) == repr(shown)
    assert first_entry(expected, expected, name="x") is None
    assert first_entry(got, got, name="x") is None


def test_floats_in_plain_values_have_bits_and_a_distance() -> None:
    found = first_entry({"lr": 0.1}, {"lr": math.nextafter(0.1, 1)}, name="x")
    assert found is not None
    assert (found.entry, found.ulp) == (("lr",), 1)
    assert (found.expected_bits, found.got_bits) == ("0x3fb999999999999a", "0x3fb999999999999b")
    assert str(found).startswith("at lr expected 0.1 (0x3fb999999999999a), got ")


def test_long_values_are_cut() -> None:
    found = first_entry([list(range(1000))], [None], name="x")
    assert found is not None
    assert len(found.expected) < 250


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(), inner) | st.tuples(inner, inner),
    max_leaves=10,
)


@settings(max_examples=100, deadline=None)
@given(plain, plain)
def test_any_two_plain_values_are_compared(one: Any, other: Any) -> None:
    found, back = first_entry(one, other, name="x"), first_entry(other, one, name="x")
    assert (found is None) == (back is None)
    assert first_entry(one, one, name="x") is None
    if found is not None and found.entry:
        below_one, below_other = one, other
        for key in found.entry[:-1]:
            below_one, below_other = below_one[key], below_other[key]
        assert type(below_one) is type(below_other)
