"""The ranks of a run as a group that can agree on plain objects. Works without a process group: one rank, rank 0.

Must not know what is agreed on. Tensors are reduced elsewhere.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from ckptrun.errors import CkptrunError

__all__ = ["Ranks"]

T = TypeVar("T")


class Ranks:
    """This rank among all ranks.

    Args:
        group: A group with a CPU backend that nothing else uses at the same time; None: the default group, or no
            group at all where none exists.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.distributed = dist.is_available() and dist.is_initialized()
        self.group = group
        self.rank = dist.get_rank(group) if self.distributed else 0
        self.world_size = dist.get_world_size(group) if self.distributed else 1

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank. All ranks call."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=self.group)
        return gathered

    def collect(self, value: T) -> list[T]:
        """Every rank's value, by rank, on rank 0; an empty list on the others. All ranks call."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size if self.rank == 0 else []
        dist.gather_object(value, gathered or None, dst=0, group=self.group)
        return gathered

    def decide(self, function: Callable[[], T]) -> T:
        """Let rank 0 decide: call ``function`` there, and give its result, or its error, to every rank. All ranks call.

        What a file system shows may differ from rank to rank; a decision taken on each rank would end in a hang.
        """
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = function()
            except (CkptrunError, OSError) as error:
                outcome[1] = error
        if self.world_size > 1:
            dist.broadcast_object_list(outcome, src=0, group=self.group)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]  # type: ignore[no-any-return]  # broadcast_object_list is untyped

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.gather(None)
