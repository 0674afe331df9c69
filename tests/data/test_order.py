import pytest
import torch

from ckptrun.data import SampleOrder, Share
from ckptrun.data.order import BatchKeys
from ckptrun.errors import ConfigError


def take(order, share, batches, position=0):
    keys = iter(BatchKeys(order, share, position=position))
    return [key for _ in range(batches) for key in next(keys)]


def global_sequence(order, *, micro_batch, ranks, batches):
    shares = [Share(micro_batch=micro_batch, data_parallel=ranks, data_rank=rank) for rank in range(ranks)]
    iterators = [iter(BatchKeys(order, share, position=0)) for share in shares]
    return [key for _ in range(batches) for iterator in iterators for key in next(iterator)]


def test_each_epoch_holds_every_sample_once():
    order = SampleOrder(7, seed=3, shuffle=True)
    keys = order.keys(0, 21)
    for epoch in range(3):
        assert sorted(index for e, index in keys if e == epoch) == list(range(7))


@pytest.mark.parametrize(("micro_batch", "ranks"), [(12, 1), (6, 2), (3, 4), (1, 4), (2, 2), (4, 1)])
def test_the_sequence_does_not_depend_on_ranks_or_micro_batch(micro_batch, ranks):
    order = SampleOrder(7, seed=3, shuffle=True)
    batches = 48 // (micro_batch * ranks)
    assert global_sequence(order, micro_batch=micro_batch, ranks=ranks, batches=batches) == order.keys(0, 48)


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = [
        tuple(SampleOrder(50, seed=seed, shuffle=True).keys(epoch * 50, 50)) for seed in (0, 1) for epoch in (0, 1)
    ]
    assert len({tuple(index for _, index in order) for order in orders}) == 4


def test_the_order_is_the_same_in_every_process_and_version():
    # A change here breaks every run that is resumed with the new version.
    assert [index for _, index in SampleOrder(8, seed=0, shuffle=True).keys(0, 8)] == [7, 1, 2, 3, 4, 0, 6, 5]


def test_without_shuffle_the_order_is_that_of_the_dataset():
    assert [index for _, index in SampleOrder(5, seed=1, shuffle=False).keys(3, 5)] == [3, 4, 0, 1, 2]


def test_a_batch_may_hold_the_end_of_one_epoch_and_the_start_of_the_next():
    keys = take(SampleOrder(5, seed=0, shuffle=True), Share(micro_batch=2, data_parallel=2, data_rank=0), 2)
    assert [epoch for epoch, _ in keys] == [0, 0, 0, 1]


def test_drawing_the_order_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    SampleOrder(100, seed=0, shuffle=True).keys(0, 250)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("numbers", [{"micro_batch": 0}, {"micro_batch": 1, "data_parallel": 2, "data_rank": 2}])
def test_a_share_that_makes_no_sense_is_refused(numbers):
    with pytest.raises(ConfigError, match=r"train\.micro_batch"):
        Share(**numbers)
