import itertools

import pytest
import torch

from ckptrun.digest import digest, multipliers
from ckptrun.errors import InternalError
from tests.digest.reference import PLACES, g, reference_digest, reference_of, u
from tests.digest.samples import DTYPES, IGNORE_COMPLEX_HALF, random_bits

pytestmark = IGNORE_COMPLEX_HALF

SHAPES = [(1,), (7,), (5, 3), (2, 255), (3, 256), (2, 257), (4, 600), (2, 3, 5, 7), (9, 2, 150), (1, 1025), (700, 3)]

GOLDEN = {
    "float32 scalar": (lambda: torch.tensor(1.5), "f2d9a3c51fd16e722ab0aa558a7f0e5d"),
    "float32 (4, 300)": (
        lambda: torch.arange(1200, dtype=torch.float32).view(4, 300),
        "3576f3620ede4321f244bb7fea948589",
    ),
    "float64 (3, 5)": (lambda: torch.arange(15, dtype=torch.float64).view(3, 5), "c820dd6283e4f1455e28603084928419"),
    "bfloat16 (3, 1025)": (
        lambda: torch.arange(3 * 1025).view(3, 1025).to(torch.bfloat16),
        "36a42f17beb6268e5bc77fee9691aa4e",
    ),
    "int64 (70,)": (lambda: torch.arange(-35, 35), "fd812aeb0b8901e286e18027a1be9a49"),
    "bool (13,)": (lambda: torch.arange(13) % 3 == 0, "cfe1519cda5f7014724f6acfd052de12"),
    "uint8 (5000, 1031)": (
        lambda: (torch.arange(5000 * 1031) % 251).to(torch.uint8).view(5000, 1031),
        "d49c56b395fde91af1aa48a60ba3270c",
    ),
    "complex64 (2, 6)": (
        lambda: torch.complex(torch.arange(12.0), -torch.arange(12.0)).view(2, 6),
        "d781fe5ae5f142f69b2c6758c1ff8efc",
    ),
    "int16 (1300000,)": (lambda: (torch.arange(1300000) % 32749).to(torch.int16), "ae2aa82651f72f4f7a822a85423ba6a8"),
    "float32 (0, 3)": (lambda: torch.empty(0, 3), "befd33935e7aacb01b072e24764fad24"),
    "plain value": (lambda: {"step": 7, "loss": -0.0, "name": "a"}, "4ef63d1cb3ba76c30606d238f07253ec"),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_digests_never_change(name):
    """A change of one of these is a change of the definition: digests in existing checkpoints become worthless."""
    build, expected = GOLDEN[name]
    assert digest(build()) == expected


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_written_definition_gives_the_same_digits(dtype):
    for shape in SHAPES:
        tensor = random_bits(*shape, dtype=dtype)
        assert digest(tensor) == reference_of(tensor), shape


def test_the_written_definition_gives_the_same_digits_beyond_4096_rows_and_lines():
    rows = torch.zeros(8193, 256, dtype=torch.int32)
    rows[[0, 4095, 4096, 8191, 8192], [0, 255, 1, 254, 128]] = torch.tensor([1, -2, 3, -(2**31), 2**31 - 1]).int()
    assert digest(rows) == reference_of(rows)
    lines = torch.zeros(2, 256 * 4097, dtype=torch.int32)
    lines[[0, 0, 1, 1], [0, 256 * 4096, 256 * 4096 - 1, 256 * 4097 - 1]] = torch.tensor([1, -2, 3, -(2**31)]).int()
    assert digest(lines) == reference_of(lines)


def test_raw_bytes_are_enough_to_compute_a_digest():
    one_and_a_half = bytes.fromhex("0000c03f")
    assert reference_digest(one_and_a_half, dtype="float32", element_bytes=4, shape=()) == digest(torch.tensor(1.5))


def test_numbers_are_those_of_splitmix64():
    # The published outputs for seed 0.
    published = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [u(0, n) for n in range(3)] == published
    assert multipliers._splitmix64(0, range(3)).tolist() == published


def test_all_place_multipliers_are_odd():
    assert all(number % 2 for per_sum in PLACES for number in per_sum)


def test_weights_of_two_places_are_never_proportional():
    """So two words that differ in one line always change its weighted sums."""
    weights = [[g(c, at) for c in range(4)] for at in range(256)]
    for a, b in itertools.combinations(weights, 2):
        assert any(a[0] * b[c] != a[c] * b[0] for c in (1, 2, 3))


def test_a_change_of_an_8_byte_element_changes_at_least_one_sum():
    """Two words, two sums: only if a determinant were divisible by 2^33 could both differences vanish mod 2^64."""
    for at in range(0, 256, 2):
        determinant = PLACES[0][at] * PLACES[1][at + 1] - PLACES[0][at + 1] * PLACES[1][at]
        assert determinant % 2**33 != 0


def test_weighted_sums_of_a_line_stay_within_the_integers_of_float64():
    for c in range(4):
        assert sum(abs(g(c, at)) for at in range(256)) * 2**31 <= 2**53


def test_a_device_whose_matrix_product_is_not_exact_is_refused(monkeypatch):
    exact = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b: exact(a, b) * (1 + 2**-50))
    multipliers.place_weights.cache_clear()
    with pytest.raises(InternalError, match="float64 matrix product is not exact"):
        digest(torch.ones(3))
    monkeypatch.undo()
    assert digest(torch.ones(3)) == reference_of(torch.ones(3))
