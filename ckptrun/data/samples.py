"""Datasets as a loader wants them: map-style ones asked by key, iterable ones with a state, random numbers kept apart.

A user's dataset may draw from the global generators (augmentation). In the rank itself that would tie the samples to
the rank's own streams, in a worker to the number of workers; either way a resumed run sees other samples. So each
sample is drawn from generators seeded for it, and the streams of the process are as before afterwards. That covers
Python's, NumPy's and torch's generators of the host; not CUDA generators, nor generators that a map-style dataset keeps
for itself.

Must not know ranks' shares or batches.
"""

import contextlib
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ckptrun.data.order import Key, derived_seed
from ckptrun.data.plain_state import from_plain, to_plain

__all__ = ["IterableSamples", "KeyedSamples", "SeededSamples", "StatefulSamples", "is_stateful", "keyed"]

logger = logging.getLogger(__name__)


def is_stateful(candidate: Any) -> bool:
    """Whether it has ``state_dict`` and ``load_state_dict``."""
    return hasattr(candidate, "state_dict") and hasattr(candidate, "load_state_dict")


class KeyedSamples(Dataset[Any]):
    """A map-style dataset asked for (epoch, index); the epoch does not matter."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        """What a loader calls for one batch."""
        return [self.dataset[index] for _, index in keys]


class SeededSamples(KeyedSamples):
    """A map-style dataset whose samples may be random: each depends on (seed, epoch, index) and nothing else."""

    def __init__(self, dataset: Any, *, seed: int) -> None:
        super().__init__(dataset)
        self._seed = seed

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:
        """What a loader calls for one batch. The streams are put back once per batch; seeding a sample is cheap."""
        with _streams_kept():
            return [self._sample(epoch, index) for epoch, index in keys]

    def _sample(self, epoch: int, index: int) -> Any:
        _seed_streams("sample", self._seed, epoch, index)
        return self.dataset[index]


class StatefulSamples(SeededSamples):
    """A map-style dataset that carries a state of its own from sample to sample."""

    def state_dict(self) -> Any:
        """The user's, as plain values."""
        return _state_of(self.dataset)

    def load_state_dict(self, state: Any) -> None:
        """Undo ``state_dict``."""
        self.dataset.load_state_dict(from_plain(state))


def keyed(dataset: Any, *, seed: int) -> KeyedSamples:
    """Wrap a map-style dataset as it needs. One that says ``deterministic_samples = True`` is taken at its word."""
    if is_stateful(dataset):
        return StatefulSamples(dataset, seed=seed)
    if getattr(dataset, "deterministic_samples", False):
        return KeyedSamples(dataset)
    return SeededSamples(dataset, seed=seed)


class IterableSamples(IterableDataset[Any]):
    """The user's iterable dataset as one rank reads it; ``epoch`` is set before each ``iter``."""

    def __init__(self, dataset: Any, *, seed: int, data_rank: int) -> None:
        self.dataset = dataset
        self.epoch = 0
        self._seed = seed
        self._data_rank = data_rank

    def __iter__(self) -> "_Samples":
        worker = get_worker_info()
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(self.epoch)
        return _Samples(self.dataset, (self._seed, self._data_rank, self.epoch, 0 if worker is None else worker.id))


class _Samples:
    """Yields samples, each with generators of its own, and says how to go on after the last one.

    The user's state may be kept by the dataset, by its iterator, or by neither; then samples are skipped one by one.
    """

    def __init__(self, dataset: Any, place: tuple[int, ...]) -> None:
        self._dataset = dataset
        self._place = place
        self._yielded = 0
        self._iterator: Iterator[Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        iterator = self._started()
        with _streams_kept():
            _seed_streams("iterable", *self._place, self._yielded)
            sample = next(iterator)
        self._yielded += 1
        return sample

    def _started(self) -> Any:
        if self._iterator is None:
            with _streams_kept():
                # __iter__ may draw an order.
                _seed_streams("iter", *self._place)
                self._iterator = iter(self._dataset)
        return self._iterator

    def state_dict(self) -> dict[str, Any]:
        dataset = _state_of(self._dataset) if is_stateful(self._dataset) else None
        # What has not started has no state of its own yet.
        iterator = self._started() if dataset is None else self._iterator
        own = iterator is not self._dataset and is_stateful(iterator)
        return {"yielded": self._yielded, "dataset": dataset, "iterator": _state_of(iterator) if own else None}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if state["dataset"] is not None:
            self._dataset.load_state_dict(from_plain(state["dataset"]))
        self._iterator = None
        if state["iterator"] is not None:
            self._started().load_state_dict(from_plain(state["iterator"]))
        if state["dataset"] is None and state["iterator"] is None:
            self._skip(state["yielded"])
        self._yielded = state["yielded"]

    def _skip(self, count: int) -> None:
        if count:
            logger.warning(
                "%s has no state_dict: reading %d samples again to get where the checkpoint was. "
                "Give the dataset state_dict and load_state_dict to resume at once.",
                type(self._dataset).__name__,
                count,
            )
        self._yielded = 0
        for _ in range(count):
            next(self)


def _state_of(stateful: Any) -> Any:
    # A copy: workers send only what changed since the last batch, and a list that the user goes on filling would
    # look unchanged, being the same object.
    return to_plain(stateful.state_dict(), name=f"data ({type(stateful).__name__})")


@contextlib.contextmanager
def _streams_kept() -> Iterator[None]:
    """Give the three global generators their states back at the end."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def _seed_streams(*parts: int | str) -> None:
    """Seed the three global generators from ``parts``."""
    seed = derived_seed(*parts)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # Not torch.manual_seed: that would reseed the CUDA generators of the rank too.
    torch.default_generator.manual_seed(seed)
