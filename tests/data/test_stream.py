"""The stream over map-style datasets: order, position, resume."""

import gc
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time

import numpy as np
import pytest
import torch

from ckptrun.data import DataStream, RandomTensors, Share
from ckptrun.errors import ConfigError, StateMismatchError
from ckptrun.values import canonical_bytes
from tests.data.samples import Augmented, Counting, Numbers

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def streams():
    """Builds streams, and closes them at the end."""
    built = []

    def build(dataset=None, *, micro_batch=3, ranks=1, rank=0, workers=0, seed=0, shuffle=True):
        share = Share(micro_batch=micro_batch, data_parallel=ranks, data_rank=rank)
        dataset = Numbers() if dataset is None else dataset
        built.append(DataStream(dataset, share, seed=seed, shuffle=shuffle, num_workers=workers))
        return built[-1]

    yield build
    for stream in built:
        stream.close()


def take(stream, batches):
    return [tensor.tolist() for _ in range(batches) for tensor in stream.next_batch()]


def global_streams():
    numpy = np.random.get_state()
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy[1].tobytes(), numpy[2:]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_batches(streams, workers):
    assert take(streams(workers=workers), 8) == take(streams(), 8)


@pytest.mark.parametrize("dataset", [Numbers, Augmented])
@pytest.mark.parametrize("workers", [0, 2])
def test_building_iterating_and_loading_leave_the_global_generators_alone(streams, dataset, workers):
    before = global_streams()
    stream = streams(dataset(), workers=workers)
    take(stream, 2)
    state = stream.state_dict()
    stream.load_state_dict(state)
    take(stream, 2)
    assert global_streams() == before


# 10 samples in batches of 3: 10 is in the middle of an epoch; in batches of 5: 2 is at the very end of one.
EPOCHS = ((3, 2), (5, 2), (5, 4), (3, 0))


@pytest.mark.parametrize(
    ("micro_batch", "done", "workers"),
    [
        *((*place, 0) for place in EPOCHS),
        (3, 2, 3),
        (5, 2, 1),
        *(pytest.param(*place, 3, marks=pytest.mark.slow) for place in EPOCHS[1:]),
    ],
)
def test_a_resumed_stream_goes_on_exactly(streams, micro_batch, done, workers):
    whole = take(streams(micro_batch=micro_batch, workers=workers), done + 5)
    first = streams(micro_batch=micro_batch, workers=workers)
    take(first, done)
    second = streams(micro_batch=micro_batch, workers=workers)
    second.load_state_dict(first.state_dict())
    assert take(second, 5) == whole[2 * done :]


def test_a_stream_resumed_twice_in_one_epoch_goes_on_exactly(streams):
    whole = take(streams(micro_batch=1, workers=3), 8)
    taken, state = [], None
    for batches in (3, 1, 1, 3):
        stream = streams(micro_batch=1, workers=3)
        if state is not None:
            stream.load_state_dict(state)
        taken += take(stream, batches)
        state = stream.state_dict()
    assert taken == whole


@pytest.mark.parametrize(("before", "after"), [(0, 3), (3, 0), (1, 2)])
def test_the_number_of_workers_may_change_at_a_resume(streams, before, after):
    whole = take(streams(), 6)
    first = streams(workers=before)
    take(first, 2)
    second = streams(workers=after)
    second.load_state_dict(first.state_dict())
    assert take(second, 4) == whole[4:]


def test_a_state_can_be_loaded_into_a_stream_that_already_runs(streams):
    whole = take(streams(workers=2), 6)
    stream = streams(workers=2)
    take(stream, 2)
    state = stream.state_dict()
    take(stream, 3)
    stream.load_state_dict(state)
    assert stream.state_dict() == state
    assert take(stream, 4) == whole[4:]


def test_the_state_right_after_a_load_is_the_loaded_one_however_often_it_is_loaded(streams):
    first = streams()
    take(first, 5)
    state = first.state_dict()
    second = streams()
    for _ in range(2):
        second.load_state_dict(state)
        assert canonical_bytes(second.state_dict(), name="data") == canonical_bytes(state, name="data")


def test_after_the_last_batch_of_an_epoch_the_state_names_the_next_one(streams):
    stream = streams(micro_batch=5)
    take(stream, 2)
    state = stream.state_dict()
    assert (state["epoch"], state["samples"], stream.epoch) == (1, 0, 1)


def test_the_state_does_not_change_when_the_stream_goes_on(streams):
    stream = streams()
    state = stream.state_dict()
    before = canonical_bytes(state, name="data")
    take(stream, 2)
    assert canonical_bytes(state, name="data") == before
    assert canonical_bytes(stream.state_dict(), name="data") != before


def test_every_sample_comes_once_when_the_number_of_ranks_changes_in_an_epoch(streams):
    ranks = [streams(Numbers(24), micro_batch=2, ranks=4, rank=rank) for rank in range(4)]
    seen = [index for rank in ranks for index in take(rank, 1)[0]]
    state = ranks[0].state_dict()
    ranks = [streams(Numbers(24), micro_batch=4, ranks=2, rank=rank) for rank in range(2)]
    for rank in ranks:
        rank.load_state_dict(state)
        seen += [index for inputs in take(rank, 2)[::2] for index in inputs]
    assert sorted(seen) == list(range(24))


def test_random_samples_depend_on_seed_epoch_and_index_only(streams):
    torch.manual_seed(1)
    whole = take(streams(Augmented()), 7)
    torch.manual_seed(2)
    first = streams(Augmented(), workers=2)
    assert take(first, 2) == whole[:4]
    second = streams(Augmented(), workers=0)
    second.load_state_dict(first.state_dict())
    assert take(second, 5) == whole[4:]


def test_random_samples_differ_from_epoch_to_epoch(streams):
    inputs, targets = zip(*_pairs(streams(Augmented(), micro_batch=1), 20), strict=True)
    assert sorted(inputs[:10]) == sorted(inputs[10:])
    assert len(set(targets)) == 20


def _pairs(stream, count):
    for _ in range(count):
        index, drawn = stream.next_batch()
        yield int(index), tuple(drawn.flatten().tolist())


@pytest.mark.parametrize("workers", [0, 2])
def test_the_state_of_a_map_style_dataset_is_resumed_too(streams, workers):
    whole = take(streams(Counting(), workers=workers), 6)
    first = streams(Counting(), workers=workers)
    take(first, 2)
    second = streams(Counting(), workers=workers)
    second.load_state_dict(first.state_dict())
    assert take(second, 4) == whole[4:]


def test_a_dataset_smaller_than_one_global_micro_batch_is_refused():
    with pytest.raises(ConfigError, match=r"10 samples, .* train\.micro_batch .* 4 \* 3 = 12"):
        DataStream(Numbers(10), Share(micro_batch=4, data_parallel=3, data_rank=0), seed=0, shuffle=True)


def test_what_is_no_dataset_is_refused():
    with pytest.raises(ConfigError, match="generator is neither"):
        DataStream((i for i in range(3)), Share(micro_batch=1), seed=0, shuffle=True)


def test_samples_that_are_no_pairs_are_refused(streams):
    class Triples(Numbers):
        def __getitem__(self, index):
            return index, index, index

    with pytest.raises(ConfigError, match=r"pair \(input, target\).* list of 3"):
        streams(Triples()).next_batch()


@pytest.mark.parametrize(
    ("change", "leaf"),
    [
        ({"seed": 1}, "data.seed"),
        ({"shuffle": False}, "data.shuffle"),
        ({"dataset": Numbers(11)}, "data.length"),
        ({"dataset": RandomTensors(samples=10, inputs=1, targets=1, seed=0)}, "data.fingerprint"),
    ],
)
def test_a_state_of_other_data_or_another_order_is_refused_and_changes_nothing(streams, change, leaf):
    state = streams().state_dict()
    other = streams(**change)
    before = other.state_dict()
    with pytest.raises(StateMismatchError, match=r"checkpoint\.load\.exclude=\[data\]") as caught:
        other.load_state_dict(state)
    assert leaf in caught.value.leaves
    assert other.state_dict() == before


def test_closing_ends_the_workers_and_keeps_the_position(streams):
    whole = take(streams(), 6)
    stream = streams(workers=2)
    take(stream, 3)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    stream.close()
    assert multiprocessing.active_children() == []
    assert take(stream, 3) == whole[6:]


def test_closing_ends_the_workers_while_an_error_is_being_handled(streams):
    class Broken(Numbers):
        def __getitem__(self, index):
            raise KeyError(index)

    stream = streams(Broken(), workers=2)
    with pytest.raises(KeyError) as caught:
        stream.next_batch()
    stream.close()
    assert multiprocessing.active_children() == []
    assert caught.tb is not None


@pytest.fixture
def worker(streams):
    """A stream, and its only worker, started by a rank that handles SIGTERM."""
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        stream = streams(workers=1)
        stream.next_batch()
    finally:
        signal.signal(signal.SIGTERM, before)
    return stream, multiprocessing.active_children()[0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_workers_sit_out_what_the_rank_answers(worker, number):
    """Schedulers send it to every process of a job, and the rank may need its workers for its last step."""
    stream, process = worker
    os.kill(process.pid, number)
    take(stream, 6)
    assert process.is_alive()


class Stuck(Numbers):
    def __getitem__(self, index):
        threading.Event().wait()


def test_a_worker_that_hangs_ends_with_its_stream(streams, monkeypatch):
    """torch ends it by SIGTERM, which it sits out, after this time."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.1)
    stream = streams(Stuck(), workers=1)
    stream._running()
    stream.close()
    assert multiprocessing.active_children() == []


class Starts(Numbers):
    """A sample is what became of a program that gets SIGTERM."""

    def __getitem__(self, index):
        program = subprocess.Popen(["sleep", "60"])
        program.terminate()
        code = torch.tensor(program.wait())
        return code, code


def test_programs_that_a_dataset_starts_still_end_by_sigterm(streams):
    codes, _ = streams(Starts(), workers=1).next_batch()
    assert set(codes.tolist()) == {-signal.SIGTERM}


def test_a_stream_that_is_dropped_leaves_no_workers(streams):
    stream = DataStream(Numbers(), Share(micro_batch=2), seed=0, shuffle=True, num_workers=1)
    stream.next_batch()
    del stream
    gc.collect()
    deadline = time.monotonic() + 10
    while multiprocessing.active_children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert multiprocessing.active_children() == []
