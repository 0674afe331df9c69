"""Several optimizers as one. Must not know which ones."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["JoinedOptimizer"]


class JoinedOptimizer(Optimizer):
    """Steps ``parts`` one after the other; groups and state are those of all parts together.

    Whatever works on ``param_groups`` and ``state`` of an optimizer (schedulers, state by name) works on this one.
    """

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = list(parts)
        self._sizes = [len(part.param_groups) for part in parts]

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Let each part update its parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        begin = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            # Given anew each time: load_state_dict puts new objects in their place.
            part.param_groups, part.state = self.param_groups[begin : begin + size], self.state
            part.step()
            begin += size
        return loss
