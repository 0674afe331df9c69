"""Digests of DTensors on real gloo ranks, beside the digest of the same values in one plain tensor."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from ckptrun.digest import digest, digest_leaves
from ckptrun.errors import UnsupportedLeafError
from tests.digest.samples import random_bits
from tests.support.run_ranks import run_ranks

pytestmark = pytest.mark.distributed

SHAPES = {
    "even": (16, 8),
    "uneven": (7, 5),
    "with empty shards": (5, 2),
    "smaller than the mesh": (2, 1),
    "no elements": (0, 4),
    "three dims": (6, 7, 9),
    "narrow": (130, 3),
    "wide": (3, 5000),
    "large": (1030, 520),
    "odd": (33, 1031),
}
DTYPES = [torch.float32, torch.bfloat16, torch.uint8, torch.float64]
ONE_AXIS = {"replicate": [Replicate()], "shard dim 0": [Shard(0)], "shard dim 1": [Shard(1)]}
TWO_AXES = {
    "both dims": [Shard(0), Shard(1)],
    "both dims, swapped": [Shard(1), Shard(0)],
    "dim 0 twice": [Shard(0), Shard(0)],
    "dim 1 twice": [Shard(1), Shard(1)],
    "replicate and shard": [Replicate(), Shard(0)],
    "shard and replicate": [Shard(1), Replicate()],
    "strided dim 0": [_StridedShard(0, split_factor=2), Shard(0)],
    "strided dim 1": [_StridedShard(1, split_factor=2), Shard(1)],
    "strided, several boxes": [_StridedShard(0, split_factor=3), Replicate()],
    "strided, boxes in both dims": [_StridedShard(0, split_factor=2), _StridedShard(1, split_factor=3)],
}


def _leaves(mesh_shape, placements):
    mesh = init_device_mesh("cpu", mesh_shape)
    return {
        f"{shape} {dtype}": distribute_tensor(random_bits(*sizes, dtype=dtype), mesh, placements, src_data_rank=None)
        for shape, sizes in SHAPES.items()
        for dtype in DTYPES
    }


def _digests_of_layout(mesh_shape, placements):
    return digest_leaves(_leaves(mesh_shape, placements))


def _expected():
    return {
        f"{shape} {dtype}": digest(random_bits(*sizes, dtype=dtype))
        for shape, sizes in SHAPES.items()
        for dtype in DTYPES
    }


@pytest.mark.parametrize("layout", ONE_AXIS)
@pytest.mark.parametrize("ranks", [2, 3])
def test_sharding_on_one_axis_does_not_count(layout, ranks):
    for got in run_ranks(_digests_of_layout, ranks, (ranks,), ONE_AXIS[layout]):
        assert got == _expected()


@pytest.mark.parametrize("layout", TWO_AXES)
def test_sharding_on_two_axes_does_not_count(layout):
    for got in run_ranks(_digests_of_layout, 4, (2, 2), TWO_AXES[layout]):
        assert got == _expected()


def _model():
    torch.manual_seed(0)
    layers = [torch.nn.Linear(12, 10), torch.nn.Linear(10, 6), torch.nn.LayerNorm(6)]
    return torch.nn.Sequential(*layers)


def _train(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(3, 12)).sum().backward()
    optimizer.step()
    moments = {f"exp_avg {i}": state["exp_avg"] for i, state in enumerate(optimizer.state.values())}
    return {**dict(model.named_parameters()), **moments}


def _gathered(leaves):
    return {name: leaf.full_tensor() if isinstance(leaf, DTensor) else leaf for name, leaf in leaves.items()}


def _digests_of_model(kind):
    model = _model()
    plain = digest_leaves(dict(model.named_parameters()))
    if kind == "fsdp_tp":
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "1": RowwiseParallel()})
        fully_shard(model, mesh=mesh["shard"])
        # Two leaves need more than one axis, others only one; one strided, the norm not known to the tensor axis.
        assert any(isinstance(p, _StridedShard) for p in model[0].weight.placements)
        assert model[2].weight.device_mesh.ndim == 1
    else:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
        fully_shard(model, mesh=mesh)
    before = digest_leaves(dict(model.named_parameters()))
    trained = _train(model)
    return plain, before, digest_leaves(trained), digest_leaves(_gathered(trained))


@pytest.mark.parametrize("kind", ["fsdp_tp", "hsdp"])
def test_a_sharded_model_and_its_optimizer_have_the_digests_of_the_gathered_values(kind):
    results = run_ranks(_digests_of_model, 4, kind)
    for plain, before, trained, gathered in results:
        assert before == plain
        assert trained == gathered
        assert trained["0.weight"] != before["0.weight"]
        assert trained == results[0][2]


def _digests_of_uneven_fsdp_tp(sizes):
    mesh = init_device_mesh("cpu", (3, 2), mesh_dim_names=("shard", "tensor"))
    results = []
    for size in sizes:
        torch.manual_seed(size)
        model = torch.nn.Linear(4, size)
        plain = digest(model.weight)
        full = model.weight.detach().clone()
        parallelize_module(model, mesh["tensor"], ColwiseParallel())
        fully_shard(model, mesh=mesh["shard"])
        by_hand = distribute_tensor(full, mesh, model.weight.placements, src_data_rank=None)
        same_sizes = by_hand.to_local().shape == model.weight.to_local().shape
        results.append((plain, digest(model.weight), digest(by_hand), same_sizes))
    return results


def test_uneven_fsdp_on_top_of_tensor_parallelism_has_the_plain_digest():
    """One and the same placements stand for two layouts here; see ckptrun/digest/layout.py."""
    sizes = [6, 7, 13, 25]
    ranks = run_ranks(_digests_of_uneven_fsdp_tp, 6, sizes)
    for results in ranks:
        for plain, by_torch, by_hand, _ in results:
            assert by_torch == plain
            assert by_hand == plain
    layouts_agree = [all(results[place][3] for results in ranks) for place in range(len(sizes))]
    assert layouts_agree == [True, False, False, False]


def _digests_with_a_differing_replica():
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    full = torch.arange(12.0).view(4, 3)
    local = full.chunk(2)[mesh.get_coordinate()[1]].clone()
    if rank == 3:
        local[1, 2] += 1
    sharded = DTensor.from_local(local, mesh, [Replicate(), Shard(0)], run_check=False)
    everywhere = full + (rank == 3)
    replicated = DTensor.from_local(everywhere, mesh, [Replicate(), Replicate()], run_check=False)
    return digest(sharded), digest(replicated)


def test_a_replica_that_differs_has_a_digest_of_its_own():
    results = run_ranks(_digests_with_a_differing_replica, 4)
    full = torch.arange(12.0).view(4, 3)
    changed = full.clone()
    changed[3, 2] += 1
    assert [sharded for sharded, _ in results] == [digest(full)] * 2 + [digest(changed)] * 2
    assert [replicated for _, replicated in results] == [digest(full)] * 3 + [digest(full + 1)]


def _count_collectives():
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("shard", "tensor"))
    cube = init_device_mesh("cpu", (2, 1, 2), mesh_dim_names=("shard", "context", "tensor"))
    full = torch.arange(96.0).view(12, 8)
    meshes = {
        "a": (mesh, [_StridedShard(0, split_factor=2), Shard(0)]),
        "b": (mesh["shard"], [Shard(0)]),
        "c": (mesh["tensor"], [Shard(1)]),
        "d": (mesh, [Shard(1), Replicate()]),
        "e": (mesh, [Replicate(), Replicate()]),
        "f": (cube, [Shard(0), Shard(0), Shard(1)]),
        "g": (cube["shard"], [Shard(1)]),
    }
    leaves = {
        f"{name}{i}": distribute_tensor(full + i, *meshes[name], src_data_rank=None) for name in meshes for i in (0, 1)
    }
    leaves["plain"] = full
    if dist.get_rank() % 2:
        leaves = dict(reversed(leaves.items()))
        leaves["only here"] = torch.ones(2)
    counts = []
    for group in (leaves, {"e": leaves["e0"]}, {name: leaves[name] for name in ("a1", "b0", "c0", "d1")}):
        counts.append(0)
        digests, separate = _counted(counts, group), {name: digest(leaf) for name, leaf in sorted(group.items())}
        assert digests == separate
    expected = {name: digest(full + int(name[1])) for name in leaves if name[1:].isdigit()}
    together = digest_leaves(leaves)
    return counts, all(together[name] == expected[name] for name in expected)


def _counted(counts, leaves):
    original = dist.all_reduce

    def all_reduce(*args, **kwargs):
        counts[-1] += 1
        return original(*args, **kwargs)

    dist.all_reduce = all_reduce
    try:
        return digest_leaves(leaves)
    finally:
        dist.all_reduce = original


def test_all_leaves_share_one_all_reduce_per_sharded_axis_whatever_the_order_of_names():
    for counts, all_equal in run_ranks(_count_collectives, 4):
        assert all_equal
        # Two axes of the square and two of the cube; none for replicas; two of the square.
        assert counts == [4, 0, 2]


def _refusal(make):
    try:
        digest_leaves({"model.weight": make()})
    except UnsupportedLeafError as error:
        return str(error)
    return None


def _partial():
    return DTensor.from_local(torch.ones(4), init_device_mesh("cpu", (2,)), [Partial()], run_check=False)


def _of_wrong_size():
    local = torch.ones(2 + dist.get_rank(), 3)
    mesh = init_device_mesh("cpu", (2,))
    return DTensor.from_local(local, mesh, [Shard(0)], run_check=False, shape=torch.Size((4, 3)), stride=(3, 1))


def _of_other_ranks():
    return distribute_tensor(torch.ones(4), DeviceMesh("cpu", [0, 1]), [Shard(0)], src_data_rank=None)


def test_partial_placements_are_refused():
    for message in run_ranks(_refusal, 2, _partial):
        assert message.startswith("Leaf 'model.weight' is a DTensor with placements (Partial(sum),)")


def test_local_tensors_of_other_sizes_than_the_placements_say_are_refused_on_every_rank():
    for rank, message in enumerate(run_ranks(_refusal, 2, _of_wrong_size)):
        assert "whose local tensors do not have the sizes that its placements say" in message
        assert f"expected (2, 3), got ({2 + rank}, 3)" in message


def test_a_rank_outside_the_mesh_is_told_so():
    messages = run_ranks(_refusal, 3, _of_other_ranks)
    assert messages[:2] == [None, None]
    assert "this rank is not part of that mesh" in messages[2]


def _digest_of_unfinished_collective():
    mesh = init_device_mesh("cpu", (2,))
    sharded = distribute_tensor(torch.arange(10.0), mesh, [Shard(0)], src_data_rank=None)
    with torch.no_grad():
        gathered = sharded.redistribute(placements=[Replicate()], async_op=True)
        is_unfinished = type(gathered.to_local()).__name__ == "AsyncCollectiveTensor"
        return is_unfinished, digest(gathered)


def test_a_local_tensor_still_on_its_way_is_waited_for():
    assert run_ranks(_digest_of_unfinished_collective, 2) == [(True, digest(torch.arange(10.0)))] * 2


def _digest_of_parameter():
    mesh = init_device_mesh("cpu", (2,))
    weight = torch.nn.Parameter(distribute_tensor(torch.arange(10.0), mesh, [Shard(0)], src_data_rank=None))
    before, state = weight.to_local().detach().clone(), torch.get_rng_state()
    got = digest(weight)
    unchanged = torch.equal(before, weight.to_local()) and torch.equal(state, torch.get_rng_state())
    return got, unchanged, torch.is_grad_enabled(), weight.requires_grad


def test_nothing_is_changed_by_the_digest_of_a_sharded_parameter():
    assert run_ranks(_digest_of_parameter, 2) == [(digest(torch.arange(10.0)), True, True, True)] * 2
