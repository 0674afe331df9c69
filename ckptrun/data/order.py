"""Which sample comes when, and which rank takes it. Must not know datasets, loaders or files.

[Note: order of samples]
Each epoch has an order of its own, drawn from (seed, epoch). The orders of epoch 0, 1, 2 ... laid end to end are one
endless sequence, and a position in it is the number of samples that all ranks together have taken. A global
micro-batch is the next ``micro_batch * data_parallel`` samples; rank r takes the r-th ``micro_batch`` of them. So the
sequence is the same for every number of ranks, workers and accumulation passes, and every sample comes exactly once
per epoch: an epoch whose length is no multiple of the global micro-batch has no tail to drop, its last samples share
a batch with the first ones of the next epoch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ckptrun.errors import ConfigError

__all__ = ["BatchKeys", "Key", "SampleOrder", "Share", "derived_seed"]

Key = tuple[int, int]
"""Epoch and index in the dataset."""


def derived_seed(*parts: int | str) -> int:
    """Return 63 bits that depend on all ``parts``; near parts give unrelated seeds."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Which samples of each global micro-batch this rank takes.

    Raises:
        ConfigError: A number is out of range.
    """

    micro_batch: int
    """Samples per rank."""
    data_parallel: int = 1
    """Number of ranks that see different samples."""
    data_rank: int = 0
    """This rank among them."""

    def __post_init__(self) -> None:
        if self.micro_batch < 1 or not 0 <= self.data_rank < self.data_parallel:
            raise ConfigError(
                f"train.micro_batch ({self.micro_batch}) must be at least 1, and data-parallel rank {self.data_rank} "
                f"must be one of {self.data_parallel}."
            )

    @property
    def global_micro_batch(self) -> int:
        """Samples that all ranks take together in one forward."""
        return self.micro_batch * self.data_parallel


class SampleOrder:
    """The endless sequence of samples; see [Note: order of samples].

    Never draws from a global generator.
    """

    def __init__(self, length: int, *, seed: int, shuffle: bool) -> None:
        self.length = length
        self.seed = seed
        self.shuffle = shuffle
        self._epoch = -1
        self._indices = torch.empty(0, dtype=torch.int64)

    def keys(self, position: int, count: int) -> list[Key]:
        """Return ``count`` keys from ``position`` on."""
        keys: list[Key] = []
        while len(keys) < count:
            epoch, offset = divmod(position + len(keys), self.length)
            taken = self._of_epoch(epoch)[offset : offset + count - len(keys)]
            keys.extend((epoch, index) for index in taken.tolist())
        return keys

    def _of_epoch(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derived_seed("order", self.seed, epoch))
            indices = torch.randperm(self.length, generator=generator) if self.shuffle else torch.arange(self.length)
            self._epoch, self._indices = epoch, indices
        return self._indices


class BatchKeys:
    """The batch sampler of one rank: endless, from ``position`` on."""

    def __init__(self, order: SampleOrder, share: Share, *, position: int) -> None:
        self._order = order
        self._share = share
        self._position = position

    def __iter__(self) -> Iterator[list[Key]]:
        return _BatchKeysFrom(self._order, self._share, self._position)


class _BatchKeysFrom:
    """An iterator with a state, so that a loader restores it as it was instead of skipping batches one by one."""

    def __init__(self, order: SampleOrder, share: Share, position: int) -> None:
        self._order = order
        self._share = share
        self._position = position

    def __iter__(self) -> Iterator[list[Key]]:
        return self

    def __next__(self) -> list[Key]:
        share = self._share
        begin = self._position + share.data_rank * share.micro_batch
        self._position += share.global_micro_batch
        return self._order.keys(begin, share.micro_batch)

    def state_dict(self) -> dict[str, int]:
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._position = state["position"]
