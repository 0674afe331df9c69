"""The stream of batches that one rank trains on, and its exact position. Must not know devices, models or steps.

[Note: where the position is kept]
A map-style dataset is a function of the index, so its position is one number: the samples that all ranks together have
taken. Workers prefetch, but what they prefetched was not taken. The number is enough to go on with any number of
ranks and workers; nothing is ever "exhausted", because the sequence is endless.

An iterable dataset, or a map-style one with ``state_dict``, keeps its position itself, in each worker of each
data-parallel rank; it is stored for each rank, and can only be taken up by the same ranks and workers.
"""

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch.utils.data import IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader

from ckptrun.data.order import BatchKeys, SampleOrder, Share, derived_seed
from ckptrun.data.samples import IterableSamples, is_stateful, keyed
from ckptrun.errors import ConfigError, StateMismatchError
from ckptrun.processes import end_with_parent, held_back, sit_out
from ckptrun.rank_names import rank_name

__all__ = ["DataStream", "SavedValue"]

_WAYS_OUT = {
    "seed": "Set train.seed to what it was",
    "shuffle": "Set data.shuffle to what it was",
    "num_workers": "A dataset with a state of its own keeps it in each worker: set data.num_workers to what it was",
    "data_parallel": "A dataset with a state of its own keeps it on each rank: use as many data-parallel ranks",
}


class SavedValue(Protocol):
    """What a checkpoint says of one plain leaf."""

    @property
    def path(self) -> tuple[str | int, ...]:
        """Its place, below the component."""

    @property
    def value(self) -> Any:
        """What was saved."""


def _order(dataset: Any, share: Share, seed: int, shuffle: bool) -> SampleOrder:
    if not (hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")):
        raise ConfigError(
            f"data: {type(dataset).__name__} is neither a torch.utils.data.IterableDataset nor has it __getitem__ and "
            "__len__; derive from one of torch's dataset classes."
        )
    length, wanted = len(dataset), share.global_micro_batch
    if length < wanted:
        raise ConfigError(
            f"The dataset has {length} samples, fewer than one global micro-batch: train.micro_batch * data-parallel "
            f"ranks = {share.micro_batch} * {share.data_parallel} = {wanted}. Use a smaller train.micro_batch, fewer "
            "ranks, or more data."
        )
    return SampleOrder(length, seed=seed, shuffle=shuffle)


def _begin_worker(_: int) -> None:
    # The rank ends its workers by other means, see ``_stop``.
    sit_out()
    # What a worker has inherited of a rank that was killed (connections) would look alive to other ranks; by itself it
    # would look for its parent every five seconds only.
    end_with_parent()


class DataStream:
    """Endless batches for one rank, and the ``data`` component of the state.

    ``next_batch`` goes over the dataset epoch after epoch; see [Note: order of samples] in ``order.py`` and
    [Note: where the position is kept]. No method uses collectives or draws from a global generator.

    Args:
        dataset: Map-style (``__getitem__`` and ``__len__``) or a ``torch.utils.data.IterableDataset``. A sample is
            ``(input, target)``, anything that torch's ``default_collate`` can stack. Random numbers that a sample
            draws from the global generators depend on (seed, epoch, index) only. If it has a ``fingerprint`` (a plain
            value), a stream refuses to go on when that changed. An iterable dataset takes this rank's, and in a
            worker this worker's, part by itself; ``shuffle`` does not concern it, ``set_epoch`` is called if it has
            one, each worker's incomplete last batch is dropped, and each rank starts over when its own part ends.
        share: What part of each global micro-batch this rank takes.
        seed: Decides the order, and random samples.
        shuffle: Draw a new order for each epoch.
        num_workers: Loader processes; they end with :meth:`close`, and sit out signals that are for the rank
            to answer (Ctrl-C, SIGTERM, SIGHUP).

    Raises:
        ConfigError: The dataset is smaller than one global micro-batch, or is no dataset.
    """

    def __init__(self, dataset: Any, share: Share, *, seed: int, shuffle: bool, num_workers: int = 0) -> None:
        self._dataset = dataset
        self._share = share
        self._seed = seed
        self._num_workers = num_workers
        self._order = None if isinstance(dataset, IterableDataset) else _order(dataset, share, seed, shuffle)
        self._epoch = 0
        self._samples = 0  # that all ranks together have taken, over all epochs
        self._loader: Any = None
        self._iterator: Any = None
        self._resume_from: Any = None

    @property
    def epoch(self) -> int:
        """The epoch of the next sample; of an iterable dataset: of this rank's last sample."""
        return self._epoch if self._order is None else self._samples // self._order.length

    def next_batch(self) -> tuple[Any, Any]:
        """Return input and target of this rank's next micro-batch, on the host.

        Raises:
            ConfigError: Samples are no pairs, or an iterable dataset gave no whole batch in an epoch.
        """
        batch = self._next()
        self._samples += self._share.global_micro_batch
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ConfigError(
                f"data: a sample of {type(self._dataset).__name__} must be a pair (input, target), "
                f"but a batch of them became a {type(batch).__name__} of {len(batch)}."
            )
        return batch[0], batch[1]

    def _next(self) -> Any:
        # Twice: a stream may stand at the end of an epoch, but an epoch has at least one batch.
        for _ in range(2):
            try:
                return next(self._running())
            except StopIteration:
                self._stop()
                self._epoch += 1
        raise ConfigError(
            f"data: {type(self._dataset).__name__} gave no whole batch of train.micro_batch={self._share.micro_batch} "
            f"in epoch {self._epoch - 1} on data-parallel rank {self._share.data_rank} of {self._share.data_parallel}. "
            "Use a smaller train.micro_batch, fewer workers or ranks, or more data."
        )

    def _running(self) -> Iterator[Any]:
        if self._iterator is None:
            self._loader = self._build_loader()
            if self._resume_from is not None:
                self._loader.load_state_dict(self._resume_from)
                self._resume_from = None
            # A worker that gets a signal before it can sit it out would bring its rank down.
            with held_back() if self._num_workers else contextlib.nullcontext():
                self._iterator = iter(self._loader)
        iterator: Iterator[Any] = self._iterator
        return iterator

    def _build_loader(self) -> Any:
        with warnings.catch_warnings():
            # torchdata 0.11 calls what torch 2.13 deprecates.
            warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
            return self._loader_at_position()

    def _loader_at_position(self) -> Any:
        # Without a generator of its own, iter() draws a seed for the workers from the global one.
        own = torch.Generator().manual_seed(derived_seed("loader", self._seed, self._share.data_rank))
        common: dict[str, Any] = {
            "num_workers": self._num_workers,
            "worker_init_fn": _begin_worker,
            "generator": own,
        }
        if self._num_workers:
            # Children of the rank itself. A rank that came from a fork server would start another one for its workers,
            # which load torch anew.
            common["multiprocessing_context"] = "fork"
        if self._order is None:
            samples = IterableSamples(self._dataset, seed=self._seed, data_rank=self._share.data_rank)
            samples.epoch = self._epoch
            return StatefulDataLoader(samples, batch_size=self._share.micro_batch, drop_last=True, **common)
        keys = BatchKeys(self._order, self._share, position=self._samples)
        return StatefulDataLoader(keyed(self._dataset, seed=self._seed), batch_sampler=keys, **common)

    @property
    def _is_kept_per_rank(self) -> bool:
        return self._order is None or is_stateful(self._dataset)

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain values; nothing in it changes when the stream goes on.

        After the last batch of an epoch it already names the next epoch.
        """
        if self._order is None:
            state: dict[str, Any] = {"kind": "iterable", "samples": self._samples}
        else:
            epoch, samples = divmod(self._samples, self._order.length)
            state = {"kind": "map", "epoch": epoch, "samples": samples, "length": self._order.length}
        state |= self._facts()
        if self._is_kept_per_rank:
            own = {"epoch": self._epoch, "loader": [self._loader_state()]}
            state["ranks"] = {rank_name(self._share.data_rank): own}
        return state

    def _facts(self) -> dict[str, Any]:
        """What must be the same when the position is taken up again."""
        facts: dict[str, Any] = {"seed": self._seed, "fingerprint": getattr(self._dataset, "fingerprint", None)}
        if self._order is not None:
            facts["shuffle"] = self._order.shuffle
            facts["length"] = self._order.length
        if self._is_kept_per_rank:
            facts |= {"data_parallel": self._share.data_parallel, "num_workers": self._num_workers}
        return facts

    def _loader_state(self) -> Any:
        # In a list: one leaf, whatever keys the user's state has from time to time.
        if self._resume_from is not None:
            return self._resume_from
        self._running()
        return self._loader.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where ``state`` was taken. May be called at any time and more than once; starts nothing.

        On another number of ranks or workers a map-style dataset goes on from the global position.

        Raises:
            StateMismatchError: ``state`` is of other data, another seed or order, or of a dataset that keeps its own
                position on other ranks or workers. The stream is unchanged.
        """
        self._check(state)
        self._stop()
        self._samples = int(state["samples"])
        if self._order is not None:
            self._samples += int(state["epoch"]) * self._order.length
        if self._is_kept_per_rank:
            own = state["ranks"][rank_name(self._share.data_rank)]
            self._epoch, self._resume_from = int(own["epoch"]), own["loader"][0]

    def _check(self, state: Mapping[str, Any]) -> None:
        here = {"kind": "map" if self._order is not None else "iterable", **self._facts()}
        wrong = [key for key, value in here.items() if state.get(key) != value]
        if wrong:
            key = wrong[0]
            raise StateMismatchError(
                f"The data of this run are not those of the checkpoint: {key} is {here[key]!r} here and "
                f"{state.get(key)!r} there. {_WAYS_OUT.get(key, 'Use the data it was trained on')}, or start the data "
                "anew: checkpoint.load.exclude=[data].",
                leaves=[f"data.{key}" for key in wrong],
            )
        rank = rank_name(self._share.data_rank)
        if self._is_kept_per_rank and rank not in state.get("ranks", {}):
            raise StateMismatchError(
                f"The checkpoint has no position of {type(self._dataset).__name__} for data-parallel {rank}: a dataset "
                "with a state of its own can go on only on the same number of ranks. Use that number, or start the "
                "data anew: checkpoint.load.exclude=[data].",
                leaves=[f"data.ranks.{rank}"],
            )

    def template(self, saved: Sequence[SavedValue]) -> dict[str, Any]:
        """Return the saved leaves that this rank takes: all but those of other data-parallel ranks."""
        nested: dict[str, Any] = {}
        own = rank_name(self._share.data_rank)
        for leaf in saved:
            if leaf.path[0] == "ranks" and leaf.path[1] != own:
                continue
            place = nested
            for element in leaf.path[:-1]:
                place = place.setdefault(str(element), {})
            place[str(leaf.path[-1])] = leaf.value
        return nested

    def close(self) -> None:
        """End the loader processes. The stream stays where it is, and usable."""
        if self._is_kept_per_rank and self._iterator is not None:
            self._resume_from = self._loader_state()
        self._stop()

    def _stop(self) -> None:
        if self._iterator is not None and self._num_workers:
            # Not left to garbage collection: the traceback of what went wrong may hold on to the iterator.
            self._iterator._shutdown_workers()
            for worker in self._iterator._workers:
                # It hangs, and has sat out the SIGTERM by which torch ends those.
                worker.kill()
                worker.join()
        self._iterator = self._loader = None
