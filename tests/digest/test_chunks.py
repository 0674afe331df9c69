import random

import pytest
import torch

from ckptrun.digest import Sums, digest, finish, tally
from ckptrun.digest.sums import chunk_sums
from tests.digest.samples import random_bits


def _cut(shape, rng):
    """Boxes that cover ``shape`` exactly once, cut at random, some of them empty."""
    boxes = [((0,) * len(shape), tuple(shape))]
    for _ in range(12):
        offsets, sizes = boxes.pop(rng.randrange(len(boxes)))
        dim = rng.randrange(len(shape))
        at = rng.randint(0, sizes[dim])
        low, high = list(sizes), list(sizes)
        low[dim], high[dim] = at, sizes[dim] - at
        moved = list(offsets)
        moved[dim] += at
        boxes += [(offsets, tuple(low)), (tuple(moved), tuple(high))]
    rng.shuffle(boxes)
    return boxes


def _digest_in_chunks(tensor, boxes):
    total = Sums()
    for offsets, sizes in boxes:
        chunk = tensor[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))].clone()
        total += chunk_sums(chunk, offsets=offsets, shape=tensor.shape)
    return finish(total, dtype=tensor.dtype, shape=tensor.shape)


SHAPES = [(1000,), (40, 700), (700, 3), (9, 14, 33), (5, 6, 7, 8), (3, 2, 1100), (2, 5000), (1, 1)]


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.float64, torch.complex128], ids=str
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_division_into_chunks_gives_the_same_digest(shape, dtype):
    tensor = random_bits(*shape, dtype=dtype)
    rng = random.Random(str((shape, dtype)))
    for _ in range(4):
        assert _digest_in_chunks(tensor, _cut(shape, rng)) == digest(tensor)


@pytest.mark.parametrize("shape", [*SHAPES, (3, 7, 2, 300), (20000,)], ids=str)
def test_the_size_of_blocks_does_not_count(shape, monkeypatch):
    """With small limits, every way to divide a chunk into blocks and pieces comes up in a small tensor."""
    for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.float64):
        tensor = random_bits(*shape, dtype=dtype)
        boxes = _cut(shape, random.Random(str(shape)))
        expected = digest(tensor)
        for block_words, piece_words, few_lines in ((256, 256, 0), (600, 300, 1), (1024, 512, 0), (5000, 700, 2)):
            with monkeypatch.context() as patch:
                patch.setattr(tally, "_CPU_WORDS", (block_words, piece_words))
                patch.setattr(tally, "_FEW_LINES", few_lines)
                assert digest(tensor) == expected
                assert _digest_in_chunks(tensor, boxes) == expected


def test_blocks_bound_what_is_converted_at_a_time(monkeypatch):
    tensor, sizes = random_bits(300, 20000, dtype=torch.float32), []
    monkeypatch.setattr(tally, "_CPU_WORDS", (1 << 16, 1 << 14))
    exact = torch.empty

    def empty(*args, **kwargs):
        result = exact(*args, **kwargs)
        sizes.append(result.numel())
        return result

    monkeypatch.setattr(torch, "empty", empty)
    digest(tensor)
    assert 1 << 13 < max(sizes) <= 1 << 14


def test_a_missing_or_doubled_chunk_changes_the_digest():
    tensor = random_bits(40, 300, dtype=torch.float32)
    halves = [chunk_sums(tensor[at : at + 20], offsets=(at, 0), shape=tensor.shape) for at in (0, 20)]
    digests = {
        finish(sums, dtype=tensor.dtype, shape=tensor.shape)
        for sums in (halves[0], halves[1], halves[0] + halves[1], halves[0] + halves[1] + halves[1])
    }
    assert len(digests) == 4
    assert digest(tensor) in digests


def test_a_chunk_at_another_place_has_other_sums():
    chunk = random_bits(10, 300, dtype=torch.float32)
    places = [(0, 0), (1, 0), (30, 0), (0, 1), (0, 300), (30, 300)]
    assert len({chunk_sums(chunk, offsets=place, shape=(40, 600)) for place in places}) == len(places)


@pytest.mark.parametrize("offsets", [(-1, 0), (31, 0), (0, 301), (0,), (0, 0, 0)])
def test_a_chunk_outside_the_full_tensor_is_refused(offsets):
    with pytest.raises(ValueError, match=r"does not lie inside shape \(40, 600\)"):
        chunk_sums(torch.zeros(10, 300), offsets=offsets, shape=(40, 600))


def test_sums_wrap_at_64_bits():
    top = Sums(first=2**64 - 1, second=2**63)
    assert top + Sums(first=1, second=2**63) == Sums()
