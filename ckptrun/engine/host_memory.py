"""Host memory for staged tensors: taken in one piece per save, and taken again only when nobody refers to it any more.

A lease is an array over the memory. Every tensor made on it keeps it alive, however it is sliced or wrapped, so a weak
reference to it tells when the last one is gone. Must not know what the bytes mean.

[Note: memory and forks]
A forked child has copies of all references, which its parent does not see. Private memory is copied with them. Shared
memory is not: what was leased when a process forked is never leased again by it, and a child hands out none of it.
"""

import mmap
import weakref
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ckptrun.forks import fork_count

__all__ = ["HostMemory", "Lease", "shared_memory"]


@dataclass(frozen=True, slots=True)
class Lease:
    """Memory for one save."""

    array: NDArray[np.uint8]
    """What tensors are made on."""
    owner: Tensor
    """The whole memory, for handing it to another process; a tensor on it does not count as a user."""


@dataclass(slots=True)
class _Block:
    owner: Tensor
    is_shared: bool
    user: "weakref.ref[NDArray[np.uint8]] | None" = None
    is_elsewhere: bool = False
    """Whether another process may use it too. See [Note: memory and forks]."""

    @property
    def is_free(self) -> bool:
        return self.user is None or self.user() is None

    def lease(self, size: int) -> Lease:
        array, forks = self.owner.numpy()[:size], fork_count()

        def note_end(_: object) -> None:
            self.is_elsewhere = self.is_shared and forks != fork_count()

        self.user = weakref.ref(array, note_end)
        return Lease(array, self.owner)


class HostMemory:
    """Hands out memory. One belongs to one process.

    Args:
        cached: Keep memory for the next lease; otherwise it goes with the lease.
        shared: Other processes can map it.
    """

    def __init__(self, *, cached: bool, shared: bool) -> None:
        self._cached = cached
        self._shared = shared
        self._blocks: list[_Block] = []

    def take(self, size: int) -> Lease:
        """Return a lease of ``size`` bytes that nobody else has."""
        return self._find(size).lease(size)

    def prepare(self, size: int) -> None:
        """Have ``size`` bytes ready, if memory is kept."""
        self._forget_shared()
        if self._cached and not any(block.owner.numel() >= size for block in self._blocks):
            block = self._new(size)
            # Touches every page, where _own_memory() has not.
            if self._shared:
                block.owner.zero_()
            self._blocks.append(block)

    def _new(self, size: int) -> _Block:
        return _Block(shared_memory(size) if self._shared else _own_memory(size), self._shared)

    def _find(self, size: int) -> _Block:
        self._forget_shared()
        for block in self._blocks:
            if block.is_free and block.owner.numel() >= size:
                return block
        # Free blocks are too small: the state has grown, and they would never be used again.
        self._blocks = [block for block in self._blocks if not block.is_free]
        block = self._new(size)
        if self._cached:
            self._blocks.append(block)
        return block

    def _forget_shared(self) -> None:
        self._blocks = [block for block in self._blocks if not block.is_elsewhere]

    def close(self) -> None:
        """Forget all memory; what is leased stays with its users."""
        self._blocks.clear()


def _own_memory(size: int) -> Tensor:
    """Return page-aligned bytes whose pages are all there, so that the first save does not wait for them."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    return torch.frombuffer(mmap.mmap(-1, max(size, 1), flags=flags), dtype=torch.uint8)


def shared_memory(size: int) -> Tensor:
    """Return bytes that can be handed to another process without a copy; one file descriptor."""
    storage = torch.UntypedStorage._new_shared(max(size, 1), device="cpu")  # type: ignore[no-untyped-call]
    return torch.empty(0, dtype=torch.uint8).set_(storage)
