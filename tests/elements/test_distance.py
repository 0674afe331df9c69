"""The distance of two floats in ULP, against every number of the small dtypes and the borders of the large ones."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ckptrun.elements.distance import largest_distance


def bits_of(tensor: Tensor) -> np.ndarray[Any, Any]:
    """A tensor as unsigned integers."""
    kind = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}[tensor.element_size()]
    return tensor.contiguous().view(torch.uint8).numpy().view(kind).reshape(-1)


SMALL = ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz", "float8_e8m0fnu")


@pytest.mark.parametrize("name", [*SMALL, "float16", "bfloat16"])
def test_distance_is_the_number_of_representable_numbers_between(name: str) -> None:
    dtype = getattr(torch, name)
    if dtype.itemsize == 1:
        tensor = torch.arange(256).to(torch.uint8).view(dtype)
    else:
        tensor = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    numbers = tensor.double().numpy()
    # The place of each number among all of this dtype, -0.0 and 0.0 being one.
    known = np.unique(numbers[~np.isnan(numbers)])
    place = np.searchsorted(known, numbers)
    bits = bits_of(tensor)
    generator = np.random.default_rng(0)
    if dtype.itemsize == 1:
        pairs = [(i, int(j)) for i in range(256) for j in generator.integers(0, 256, 8)]
    else:
        pairs = [tuple(generator.integers(0, len(bits), 2)) for _ in range(2000)]
    # Numbers in their order, one beside the next: each step is one.
    order = np.argsort(place[~np.isnan(numbers)], kind="stable")
    sorted_bits = bits[~np.isnan(numbers)][order]
    assert largest_distance(name, sorted_bits[1:], sorted_bits[:-1]).ulp == 1
    for i, j in pairs:
        found = largest_distance(name, bits[[i]], bits[[j]])
        if np.isnan(numbers[i]) or np.isnan(numbers[j]):
            assert (found.ulp, found.nans) == (None, 1)
        else:
            assert (found.ulp, found.nans) == (abs(int(place[i]) - int(place[j])), 0), (numbers[i], numbers[j])


@pytest.mark.parametrize("name", ["float32", "float64"])
def test_distance_of_neighbours_is_one_step(name: str) -> None:
    kind = np.dtype(name).type
    info = np.finfo(kind)
    inf = kind(np.inf)
    rows = [
        (1.0, np.nextafter(kind(1), inf), 1),
        (0.0, info.smallest_subnormal, 1),
        (-info.smallest_subnormal, info.smallest_subnormal, 2),
        (0.0, -0.0, 0),
        (info.max, inf, 1),
        (info.min, -inf, 1),
        (info.smallest_normal, np.nextafter(info.smallest_normal, kind(0)), 1),
        (1.0, 2.0, 2**info.nmant),
        (-1.0, 1.0, 2 * int(np.array(1, kind).view(f"u{kind().itemsize}"))),
        (-inf, inf, 2 * int(np.array(inf, kind).view(f"u{kind().itemsize}"))),
    ]
    for a, b, steps in rows:
        one, other = (np.array([value], kind).view(f"u{kind().itemsize}") for value in (a, b))
        assert largest_distance(name, one, other).ulp == steps, (a, b)
        assert largest_distance(name, other, one).ulp == steps, (b, a)


def test_the_largest_of_several_distances_counts_and_nans_take_no_part() -> None:
    a = torch.tensor([1.0, 5.0, float("nan"), 1.0])
    b = torch.tensor([1.0, 5.0, 3.0, 1.0])
    b.view(torch.int32)[:2] += torch.tensor([3, 9], dtype=torch.int32)
    found = largest_distance("float32", bits_of(a), bits_of(b))
    assert (found.ulp, found.nans) == (9, 1)
