"""The stream over iterable datasets, which keep their own position."""

import logging
import random
from itertools import chain

import pytest
import torch
from torch.utils.data import IterableDataset

from ckptrun.data import DataStream, Share
from ckptrun.errors import ConfigError, StateMismatchError, UnsupportedLeafError
from ckptrun.values import canonical_bytes
from tests.data.samples import ForgetfulNumbers, StatefulDatasetNumbers, StatefulIteratorNumbers

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

KINDS = [StatefulDatasetNumbers, StatefulIteratorNumbers, ForgetfulNumbers]


@pytest.fixture
def streams():
    """Builds streams, and closes them at the end."""
    built = []

    def build(kind, *, length=23, micro_batch=2, ranks=1, rank=0, workers=0):
        dataset = kind(length, rank=rank, world_size=ranks)
        share = Share(micro_batch=micro_batch, data_parallel=ranks, data_rank=rank)
        built.append(DataStream(dataset, share, seed=0, shuffle=True, num_workers=workers))
        return built[-1]

    yield build
    for stream in built:
        stream.close()


def take(stream, batches):
    return [tensor.tolist() for _ in range(batches) for tensor in stream.next_batch()]


# 23 samples: 11 batches per epoch without workers; with 3 workers of 8, 8 and 7 samples 4 + 4 + 3.
PLACES = (4, 11, 14)
WITH_WORKERS = list(zip(KINDS, PLACES, strict=True))
"""To start workers takes most of the time: each kind and each place once, the rest behind the marker that CI runs."""


@pytest.mark.parametrize(
    ("kind", "done", "workers"),
    [
        *((kind, done, 0) for kind in KINDS for done in PLACES),
        *((kind, done, 3) for kind, done in WITH_WORKERS),
        *(
            pytest.param(kind, done, 3, marks=pytest.mark.slow)
            for kind in KINDS
            for done in PLACES
            if (kind, done) not in WITH_WORKERS
        ),
    ],
)
def test_a_resumed_stream_goes_on_exactly(streams, kind, workers, done):
    whole = take(streams(kind, workers=workers), done + 9)
    first = streams(kind, workers=workers)
    assert take(first, done) == whole[: 2 * done]
    second = streams(kind, workers=workers)
    second.load_state_dict(first.state_dict())
    assert take(second, 9) == whole[2 * done :]


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_a_save_of_fewer_batches_than_workers_after_a_resume_is_complete(streams, kind):
    whole = take(streams(kind, workers=3), 12)
    taken, state = [], None
    for batches in (5, 1, 2, 4):
        stream = streams(kind, workers=3)
        if state is not None:
            stream.load_state_dict(state)
        taken += take(stream, batches)
        state = stream.state_dict()
    assert taken == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_right_after_a_load_is_the_loaded_one(streams, kind, workers):
    first = streams(kind, workers=workers)
    take(first, 5)
    state = first.state_dict()
    second = streams(kind, workers=workers)
    for _ in range(2):
        second.load_state_dict(state)
        assert canonical_bytes(second.state_dict(), name="data") == canonical_bytes(state, name="data")


@pytest.mark.parametrize("kind", KINDS)
def test_going_back_to_an_earlier_state_gives_the_same_batches(streams, kind):
    stream = streams(kind)
    state = stream.state_dict()
    first = take(stream, 13)
    stream.load_state_dict(state)
    assert take(stream, 13) == first


def test_a_state_does_not_change_when_the_dataset_fills_its_own_lists(streams):
    stream = streams(StatefulDatasetNumbers)
    take(stream, 2)
    state = stream.state_dict()
    before = canonical_bytes(state, name="data")
    take(stream, 2)
    assert canonical_bytes(state, name="data") == before


def test_a_list_that_a_dataset_fills_in_a_worker_is_saved_as_it_is_now(streams):
    # A worker sends only what changed, and compares a live list with itself.
    stream = streams(StatefulDatasetNumbers, workers=1)
    inputs = [value for batch in take(stream, 3)[::2] for value in batch]
    (worker,) = stream.state_dict()["ranks"]["rank_00000"]["loader"][0]["_snapshot"]["_worker_snapshots"].values()
    assert worker["fetcher_state"]["dataset_iter_state"]["dataset"]["seen"] == inputs


def test_closing_keeps_the_position(streams):
    whole = take(streams(StatefulDatasetNumbers, workers=2), 8)
    stream = streams(StatefulDatasetNumbers, workers=2)
    taken = take(stream, 3)
    stream.close()
    assert taken + take(stream, 5) == whole


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (2, 3)])
def test_ranks_and_workers_see_every_sample_once(streams, ranks, workers):
    seen = []
    for rank in range(ranks):
        stream = streams(StatefulDatasetNumbers, length=24, micro_batch=2, ranks=ranks, rank=rank, workers=workers)
        seen += [value for inputs in take(stream, 12 // ranks)[::2] for value in inputs]
    assert sorted(seen) == list(range(24))


def test_the_epoch_reaches_the_dataset(streams):
    stream = streams(StatefulDatasetNumbers, length=8)
    first, second = take(stream, 4)[::2], take(stream, 4)[::2]
    assert stream.epoch == 1
    assert first != second
    assert sorted(chain(*first)) == sorted(chain(*second))


@pytest.mark.parametrize("kind", KINDS)
def test_random_samples_leave_the_global_generators_alone_and_do_not_depend_on_them(streams, kind):
    random.seed(1)
    before = torch.get_rng_state(), random.getstate()
    first = take(streams(kind), 5)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    torch.rand(3)
    random.seed(2)
    assert take(streams(kind), 5) == first


def test_random_samples_differ_from_sample_to_sample_rank_to_rank_and_epoch_to_epoch(streams):
    one = streams(StatefulDatasetNumbers, length=16, ranks=2, rank=0)
    other = streams(StatefulDatasetNumbers, length=16, ranks=2, rank=1)
    drawn = [*chain(*take(one, 8)[1::2]), *chain(*take(other, 8)[1::2])]
    assert len(set(drawn)) == 32


@pytest.mark.parametrize(("change", "leaf"), [({"workers": 2}, "num_workers"), ({"ranks": 2}, "data_parallel")])
def test_other_ranks_or_workers_are_refused(streams, change, leaf):
    state = streams(StatefulDatasetNumbers).state_dict()
    with pytest.raises(StateMismatchError, match=r"keeps it .*(as many|data\.num_workers)") as caught:
        streams(StatefulDatasetNumbers, **change).load_state_dict(state)
    assert f"data.{leaf}" in caught.value.leaves


def test_a_state_without_this_rank_is_refused(streams):
    state = streams(StatefulDatasetNumbers, ranks=2, rank=0).state_dict()
    with pytest.raises(StateMismatchError, match="rank_00001") as caught:
        streams(StatefulDatasetNumbers, ranks=2, rank=1).load_state_dict(state)
    assert caught.value.leaves == ("data.ranks.rank_00001",)


def test_a_template_holds_the_leaves_of_this_rank_only(streams):
    class Leaf:
        def __init__(self, value, *path):
            self.path, self.value = path, value

    saved = [Leaf(5, "samples"), Leaf(0, "ranks", "rank_00000", "epoch"), Leaf(3, "ranks", "rank_00001", "epoch")]
    stream = streams(StatefulDatasetNumbers, ranks=2, rank=1)
    assert stream.template(saved) == {"samples": 5, "ranks": {"rank_00001": {"epoch": 3}}}


def test_a_dataset_without_state_says_that_it_is_read_again(streams, caplog):
    first = streams(ForgetfulNumbers)
    take(first, 3)
    second = streams(ForgetfulNumbers)
    second.load_state_dict(first.state_dict())
    with caplog.at_level(logging.WARNING):
        take(second, 1)
    assert "ForgetfulNumbers has no state_dict: reading 6 samples again" in caplog.text


@pytest.mark.parametrize("kind", [StatefulDatasetNumbers, StatefulIteratorNumbers])
def test_a_dataset_with_a_state_is_not_read_again(streams, caplog, kind):
    first = streams(kind)
    take(first, 3)
    second = streams(kind)
    second.load_state_dict(first.state_dict())
    with caplog.at_level(logging.WARNING):
        take(second, 1)
    assert "again" not in caplog.text


def test_a_part_without_a_whole_batch_is_an_error_not_a_hang(streams):
    with pytest.raises(ConfigError, match=r"gave no whole batch of train\.micro_batch=4 .* rank 0"):
        take(streams(StatefulDatasetNumbers, length=3, micro_batch=4), 1)


def test_a_state_that_cannot_be_stored_names_the_leaf():
    class Bad(IterableDataset):
        def __iter__(self):
            yield 1, 2

        def state_dict(self):
            return {"deep": [object()]}

        def load_state_dict(self, state):
            pass

    with pytest.raises(UnsupportedLeafError, match=r"data \(Bad\)\.deep\.0"):
        DataStream(Bad(), Share(micro_batch=1), seed=0, shuffle=True).state_dict()
