"""Group B: which samples come next."""

from ckptrun.data.order import BatchKeys, SampleOrder
from ckptrun.data.stream import DataStream
from ckptrun.trainer import Trainer
from tests.zoo.planted.seam import Bug, is_resumed, rank, training_of, world_size, wrap


def _resumed_at(change) -> None:
    """Let the loader of a resumed stream begin where ``change(position, share)`` says, while the stream counts on."""
    loaded = []

    @wrap(DataStream, "load_state_dict")
    def load(original, stream, state):
        original(stream, state)
        loaded.append(stream)

    @wrap(BatchKeys, "__init__")
    def make(original, keys, order, share, *, position):
        original(keys, order, share, position=change(position, share, order) if loaded else position)


class FirstEpochAgain(Bug):
    """``set_epoch(0)`` on resume: the place in the epoch is right, its order is that of the first one."""

    def plant(self) -> None:
        _resumed_at(lambda position, share, order: position % order.length)


class EpochForgotten(Bug):
    """The position is taken up within the first epoch."""

    def plant(self) -> None:
        @wrap(DataStream, "load_state_dict")
        def load(original, stream, state):
            original(stream, {**state, "epoch": 0})


class NothingLeftOfTheEpoch(Bug):
    """Resumed at the end of an epoch, the loop finds its loader exhausted and the run complete."""

    def plant(self) -> None:
        @wrap(Trainer, "run")
        def run(original, trainer):
            training = training_of(trainer)
            samples = training.stream._samples
            if is_resumed(training) and samples % training.stream.state_dict()["length"] == 0:
                return False
            return original(trainer)


class EpochDroppedAtItsEnd(Bug):
    """A state that was taken at the end of an epoch is taken for one at its start."""

    def plant(self) -> None:
        @wrap(DataStream, "load_state_dict")
        def load(original, stream, state):
            at_end = state["samples"] == 0 and state["epoch"] > 0
            original(stream, {**state, "epoch": state["epoch"] - 1} if at_end else state)


class StartsAtRowZero(Bug):
    """The iterator is made before the state is loaded, which is only put aside."""

    def plant(self) -> None:
        _resumed_at(lambda position, share, order: 0)


class CountsFromTheResume(Bug):
    """The counter of what was yielded begins anew with each iterator."""

    def plant(self) -> None:
        @wrap(DataStream, "_running")
        def running(original, stream):
            is_new = stream._iterator is None
            iterator = original(stream)
            if is_new:
                stream._samples = 0
            return iterator


class OneStepAhead(Bug):
    """The position comes from the newest folder of the loader's own, which is a step ahead of the model's."""

    def plant(self) -> None:
        @wrap(DataStream, "load_state_dict")
        def load(original, stream, state):
            original(stream, state)
            stream._samples += stream._share.global_micro_batch


class KeyOfOneRankMissing(Bug):
    """A warning that the state of this rank is empty, and on it goes from the beginning."""

    def plant(self) -> None:
        @wrap(DataStream, "load_state_dict")
        def load(original, stream, state):
            if rank() != 1:
                original(stream, state)


class AccumulationIgnored(Bug):
    """Skips as many micro-batches as there were steps."""

    def plant(self, passes: int) -> None:
        _resumed_at(lambda position, share, order: position // passes)


class NeverLoaded(Bug):
    """The loader's ``load_state_dict`` does nothing."""

    def plant(self) -> None:
        @wrap(DataStream, "load_state_dict")
        def load(original, stream, state):
            pass


class OneRankBehind(Bug):
    """The loader of one rank had not been advanced when it was saved."""

    def plant(self) -> None:
        _resumed_at(lambda position, share, order: position - (share.global_micro_batch if share.data_rank == 1 else 0))


class OrderOfTheWorldSize(Bug):
    """A sampler that deals the samples out by the number of ranks there are."""

    def plant(self) -> None:
        @wrap(SampleOrder, "__init__")
        def make(original, order, length, *, seed, shuffle):
            original(order, length, seed=seed + world_size(), shuffle=shuffle)


class LastBatchAgain(Bug):
    """Saved by a hook that runs before the position is counted on."""

    def plant(self) -> None:
        taken = []

        @wrap(DataStream, "next_batch")
        def next_batch(original, stream):
            batch = original(stream)
            taken[:] = [stream]
            return batch

        @wrap(DataStream, "state_dict")
        def state_dict(original, stream):
            if stream not in taken:
                return original(stream)
            stream._samples -= stream._share.global_micro_batch
            try:
                return original(stream)
            finally:
                stream._samples += stream._share.global_micro_batch


class SameEpochAgain(Bug):
    """At the end of an epoch its own number is saved, not that of the next one."""

    def plant(self) -> None:
        taken = []

        @wrap(DataStream, "next_batch")
        def next_batch(original, stream):
            batch = original(stream)
            taken[:] = [stream]
            return batch

        @wrap(DataStream, "state_dict")
        def state_dict(original, stream):
            state = original(stream)
            if stream in taken and state["samples"] == 0:
                state["epoch"] -= 1
            return state


class WorkersStateIncomplete(Bug):
    """The state of a worker that has not yielded since the resume is that of its beginning."""

    def plant(self) -> None:
        loaded = []

        @wrap(DataStream, "load_state_dict")
        def load(original, stream, state):
            original(stream, state)
            loaded[:] = [stream._samples]

        @wrap(DataStream, "_loader_state")
        def loader_state(original, stream):
            state = original(stream)
            batches = (stream._samples - loaded[0]) // stream._share.global_micro_batch if loaded else 99
            if 0 < batches < stream._num_workers:
                workers = state["_snapshot"]["_worker_snapshots"]
                workers["worker_1"] = {**workers["worker_1"], "fetcher_state": None, "dataset_state": None}
            return state
