"""The optimizer's state on several ranks: sharded, flat, and loaded on another mesh. Bits, not tolerances."""

import pytest

from tests.optimizer.sharded import four_ranks, loaded_elsewhere, two_ranks, whole_tensor_steps
from tests.support.run_ranks import run_ranks

pytestmark = pytest.mark.distributed

FOUR = [
    ("fsdp_tp", "adamw"),
    ("fsdp_tp", "adamw_foreach"),
    ("fsdp_tp", "adamw_fused"),
    ("fsdp_tp", "adafactor"),
    ("fsdp_tp", "muon"),
    ("hsdp", "adamw"),
    ("hsdp1", "adamw"),
    ("fsdp1_tp", "adamw"),
]
TWO = [("fsdp", "adamw"), ("fsdp", "adafactor"), ("fsdp", "muon"), ("tp", "adamw_foreach"), ("fsdp1", "adamw")]
# Saved on four ranks as ..., loaded on two ranks as ...
ELSEWHERE = [
    ("fsdp_tp", "fsdp", "adamw"),
    ("fsdp_tp", "fsdp", "adafactor"),
    ("fsdp_tp", "tp", "muon"),
    ("fsdp_tp", "fsdp1", "adamw"),
    ("fsdp1_tp", "fsdp", "adamw"),
    ("hsdp1", "tp", "adamw"),
]


@pytest.fixture(scope="module")
def four():
    """What each of four ranks found."""
    return run_ranks(four_ranks, 4, FOUR)


@pytest.fixture(scope="module")
def two(four):
    """What each of two ranks found, with what four ranks stored."""
    stored = {key: four[0]["interrupted"][key[0], key[2]][1] for key in ELSEWHERE}
    return run_ranks(two_ranks, 2, TWO, stored, four[0]["odd"][2])


def test_the_ranks_of_a_group_store_the_same(four):
    for key in FOUR:
        assert all(rank["interrupted"][key][1] == four[0]["interrupted"][key][1] for rank in four)


@pytest.mark.parametrize("key", FOUR + TWO, ids=lambda key: "-".join(key))
def test_a_fresh_sharded_optimizer_takes_everything_over_and_goes_on_with_the_same_bits(request, key):
    for rank in request.getfixturevalue("four" if key in FOUR else "two"):
        assert rank["interrupted"][key][0] == (True, True, True, True)


@pytest.mark.parametrize("key", [key for key in FOUR if key[0] in ("fsdp_tp", "hsdp")], ids=lambda key: "-".join(key))
def test_frozen_parameters_keep_their_moments_and_unused_ones_have_none(four, key):
    names = {leaf.path[1] for leaf in four[0]["interrupted"][key][1] if leaf.path[0] == "state"}
    assert "later.weight" in names
    assert not {name for name in names if name.startswith(("frozen", "unused"))}


@pytest.mark.parametrize("key", ELSEWHERE, ids=lambda key: "-".join(key))
def test_on_another_mesh_the_state_is_the_same_leaf_by_leaf(two, four, key):
    saved = {leaf.path: leaf for leaf in four[0]["interrupted"][key[0], key[2]][1]}
    for rank in two:
        again = {leaf.path: leaf for leaf in rank["elsewhere"][key][0]}
        assert again == saved


def test_moments_lie_as_their_parameter_does_on_the_new_mesh(two):
    assert two[0]["elsewhere"]["fsdp_tp", "fsdp", "adamw"][1] == {
        "step": None,
        "exp_avg": "(Shard(dim=0),)",
        "exp_avg_sq": "(Shard(dim=0),)",
    }


def test_one_rank_takes_what_four_stored(four):
    for kind, name in (("fsdp_tp", "adamw"), ("fsdp_tp", "muon"), ("fsdp_tp", "adafactor"), ("fsdp1_tp", "adamw")):
        stored = four[0]["interrupted"][kind, name][1]
        again, _ = loaded_elsewhere("none", name, stored)
        assert again == stored


@pytest.mark.parametrize("optimizer", ["muon", "adafactor"])
@pytest.mark.parametrize("kind", ["fsdp_tp", "hsdp", "fsdp", "tp"])
def test_whole_tensor_optimizers_give_the_bits_of_one_device(request, kind, optimizer):
    expected_weights, expected_state = whole_tensor_steps(["none"])["none", optimizer]
    for rank in request.getfixturevalue("two" if kind in ("fsdp", "tp") else "four"):
        weights, state = rank["whole"][kind, optimizer]
        assert weights == expected_weights
        assert state == expected_state


def test_parts_of_every_layout_come_together_with_the_bits_of_the_whole(four):
    for rank in four:
        assert rank["gathered"] == [True] * len(rank["gathered"])


def test_gradients_that_are_partial_sums_are_added_before_the_step(four):
    assert [rank["partial"] for rank in four] == [True] * 4


def test_groups_are_split_where_torchs_kernels_refuse_to_mix(four):
    # block.* is on (shard, tensor), everything else on (shard); there are two names all the same.
    assert sorted(four[0]["groups"]) == [("decay", 2), ("decay", 5), ("no_decay", 2), ("no_decay", 5)]


def test_state_that_lies_in_its_own_way_is_made_anew_as_it_was(four):
    layouts = {"rows": "shard=S(0),tensor=R", "turned": "shard=S(1),tensor=R", "plain": "device"}
    for rank in four:
        assert rank["odd"][:2] == ({"weight": layouts}, [True, True])


def test_axes_that_a_layout_does_not_find_on_the_new_mesh_play_no_part(two, four):
    for rank in two:
        again, places = rank["odd"]
        assert again == four[0]["odd"][2][:3]
        assert places == {"rows": "(Shard(dim=0),)", "turned": "(Shard(dim=1),)", "plain": None}


def test_state_that_cannot_be_made_anew_is_refused_by_name(four):
    partial, elsewhere, laid_out = four[0]["refused"]
    assert "optimizer.state.weight.sum" in partial
    assert "Partial" in partial
    assert "optimizer.state.weight.elsewhere" in elsewhere
    assert "on the parameter's mesh" in elsewhere
    assert "optimizer.state.weight.moment" in laid_out
    assert "laid out in another way" in laid_out


def test_the_state_of_flat_parts_is_a_copy(four):
    assert [rank["flat_copies"] for rank in four] == [(True, False)] * 4


def test_state_that_does_not_fit_flat_parts_is_refused_by_name(four):
    for rank in four:
        shape, laid_out, odd = rank["flat_refused"]
        assert "'optimizer.state.row.exp_avg' has shape (1, 5) in the checkpoint" in shape
        assert "'optimizer.state.row.exp_avg' is laid out in another way" in laid_out
        assert "odd' has shape (999,)" in odd
        assert "parallelism=fsdp" in odd
