"""Which bytes a box takes, and which boxes overlap, against tensors that were really cut."""

import itertools
import math

import pytest
import torch

from ckptrun.engine.geometry import dense_boxes, overlap, row_major_strides, span_of


@pytest.mark.parametrize("sizes", [(), (7,), (3, 5), (2, 3, 4)])
def test_a_span_holds_exactly_from_the_first_to_the_last_element(sizes: tuple[int, ...]) -> None:
    numbers = torch.arange(torch.Size(sizes).numel()).view(sizes)
    ranges = [[(b, e) for b in range(size) for e in range(b + 1, size + 1)] for size in sizes]
    for box in itertools.product(*ranges):
        inside = numbers[tuple(slice(b, e) for b, e in box)].reshape(-1)
        span = span_of(sizes, [b for b, _ in box], [e - b for b, e in box])
        assert (span.begin, span.begin + span.count - 1) == (inside[0].item(), inside[-1].item())
        assert span.is_dense == (span.count == inside.numel())


@pytest.mark.parametrize("most", [1, 2, 5, 6, 7, 24, 1000])
@pytest.mark.parametrize("sizes", [(), (7,), (3, 5), (2, 3, 4), (1, 1, 9), (0,), (3, 0, 2)])
def test_dense_boxes_are_the_elements_in_their_order(sizes: tuple[int, ...], most: int) -> None:
    numbers = torch.arange(math.prod(sizes)).view(sizes)
    found = []
    for offsets, box in dense_boxes(sizes, most):
        assert 1 <= math.prod(box) <= most
        assert not sizes or span_of(sizes, offsets, box).is_dense
        found += numbers[tuple(slice(o, o + s) for o, s in zip(offsets, box, strict=True))].reshape(-1).tolist()
    assert found == list(range(math.prod(sizes)))


def test_row_major_strides_are_those_of_a_contiguous_tensor() -> None:
    assert row_major_strides((4, 3, 2)) == torch.empty(4, 3, 2).stride()


def test_boxes_that_tile_a_tensor_do_not_overlap() -> None:
    tiles = [((row, column), (2, 3)) for row in range(0, 6, 2) for column in range(0, 9, 3)]
    assert not overlap(tiles)


@pytest.mark.parametrize(
    "boxes",
    [
        [((0, 0), (2, 2)), ((1, 1), (2, 2))],
        [((0, 0), (2, 2)), ((0, 0), (2, 2))],
        [((0, 0), (9, 1)), ((0, 1), (1, 1)), ((8, 0), (1, 2))],
        [((), ()), ((), ())],
    ],
)
def test_boxes_that_share_an_element_overlap(boxes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    assert overlap(boxes)


def test_empty_boxes_overlap_nothing() -> None:
    assert not overlap([((0, 0), (4, 4)), ((0, 0), (0, 4)), ((2, 0), (0, 4))])
