import itertools
import random

import pytest
import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from ckptrun.digest.layout import boxes, readings, sharded_axes, unsupported


def _coordinates(mesh_shape):
    return itertools.product(*(range(size) for size in mesh_shape))


def _random_layout(rng):
    mesh_shape = [rng.randint(1, 4) for _ in range(rng.randint(1, 3))]
    shape = [rng.choice([0, 1, 2, 3, 5, 7, 8, 12, 13]) for _ in range(rng.randint(1, 3))]
    placements = [
        rng.choice([Replicate(), Shard(dim), Shard(dim), _StridedShard(dim, split_factor=rng.randint(2, 4))])
        for dim in (rng.randrange(len(shape)) for _ in mesh_shape)
    ]
    return shape, mesh_shape, placements


def _from_left_to_right(shape, mesh_shape, placements, coordinate):
    """What ``distribute_tensor`` leaves on a rank of a tensor that holds its own flat indices."""
    local = torch.arange(torch.Size(shape).numel()).view(shape)
    for axis, placement in enumerate(placements):
        if not isinstance(placement, Replicate):
            parts, _ = placement._split_tensor(local, mesh_shape[axis], with_padding=False, contiguous=True)
            local = parts[coordinate[axis]]
    return local


def _by_boxes(shape, reading):
    sizes, parts = boxes(reading)
    full, local = torch.arange(torch.Size(shape).numel()).view(shape), torch.full(sizes, -1)
    for part in parts:
        extent = local[part.inside].shape
        source = full[tuple(slice(o, o + s) for o, s in zip(part.offsets, extent, strict=True))]
        local[part.inside] = source
    return local


def test_reading_from_left_to_right_is_that_of_distribute_tensor():
    rng = random.Random(0)
    for _ in range(150):
        shape, mesh_shape, placements = _random_layout(rng)
        for coordinate in _coordinates(mesh_shape):
            expected = _from_left_to_right(shape, mesh_shape, placements, coordinate)
            got = _by_boxes(shape, readings(shape, mesh_shape, placements, coordinate)[-1])
            assert torch.equal(got, expected), (shape, mesh_shape, placements, coordinate)


@pytest.mark.parametrize("size", range(30))
@pytest.mark.parametrize("mesh_shape", [(2, 2), (3, 2), (2, 3), (4, 2)])
def test_the_first_reading_of_a_strided_shard_divides_for_tensor_parallelism_first(mesh_shape, size):
    placements = [_StridedShard(0, split_factor=mesh_shape[1]), Shard(0)]
    for shard, tensor in _coordinates(mesh_shape):
        of_tensor_rank = (*torch.arange(size).chunk(mesh_shape[1]), *[torch.arange(0)] * mesh_shape[1])[tensor]
        expected = (*of_tensor_rank.chunk(mesh_shape[0]), *[torch.arange(0)] * mesh_shape[0])[shard]
        got = _by_boxes([size], readings([size], mesh_shape, placements, (shard, tensor))[0])
        assert torch.equal(got, expected)


def test_three_sharded_axes_of_one_dim_are_read_in_the_order_that_gives_the_split_factors():
    mesh_shape, size = (4, 3, 2), 48
    placements = [_StridedShard(0, split_factor=2), _StridedShard(0, split_factor=2), Shard(0)]
    for coordinate in _coordinates(mesh_shape):
        expected = torch.arange(size)
        for axis in (2, 0, 1):
            expected = expected.chunk(mesh_shape[axis])[coordinate[axis]]
        first, second = readings([size], mesh_shape, placements, coordinate)
        assert torch.equal(_by_boxes([size], first), expected)
        assert torch.equal(_by_boxes([size], second), expected)


def test_every_element_is_held_exactly_once_in_every_reading():
    rng = random.Random(1)
    for _ in range(150):
        shape, mesh_shape, placements = _random_layout(rng)
        held = [size for size, p in zip(mesh_shape, placements, strict=True) if isinstance(p, Replicate)]
        copies = torch.Size(held).numel()
        count = len(readings(shape, mesh_shape, placements, (0,) * len(mesh_shape)))
        for which in range(count):
            counts = torch.zeros(torch.Size(shape).numel(), dtype=torch.int64)
            for coordinate in _coordinates(mesh_shape):
                found = readings(shape, mesh_shape, placements, coordinate)
                assert len(found) == count
                indices = _by_boxes(shape, found[which]).flatten()
                counts += torch.bincount(indices, minlength=len(counts))
            assert counts.tolist() == [copies] * len(counts), (shape, mesh_shape, placements)


def test_local_sizes_always_tell_the_two_readings_apart():
    for shard, tensor, size in itertools.product(range(2, 6), range(2, 6), range(60)):
        placements = [_StridedShard(0, split_factor=tensor), Shard(0)]
        pairs = [readings([size], (shard, tensor), placements, at) for at in _coordinates((shard, tensor))]
        same_sizes = all(boxes(first)[0] == boxes(second)[0] for first, second in pairs)
        assert same_sizes == all(first == second for first, second in pairs), (shard, tensor, size)


def test_a_strided_shard_alone_is_several_boxes():
    (reading,) = readings([12, 4], (2,), [_StridedShard(0, split_factor=3)], (1,))
    sizes, parts = boxes(reading)
    assert sizes == (6, 4)
    assert [part.offsets for part in parts] == [(2, 0), (6, 0), (10, 0)]


def test_replicated_axes_and_axes_of_one_rank_are_not_summed_over():
    placements = [Replicate(), Shard(0), _StridedShard(1, split_factor=2), Shard(1)]
    assert sharded_axes((2, 2, 2, 1), placements) == (1, 2)


def test_partial_and_unknown_placements_are_unsupported():
    partial, unknown = Partial(), object()
    assert unsupported([Replicate(), Shard(0), _StridedShard(0, split_factor=2)]) == []
    assert unsupported([partial, Shard(0), unknown]) == [partial, unknown]
