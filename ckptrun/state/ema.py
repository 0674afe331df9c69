"""An exponential moving average of the weights. Must not know how they are sharded: ranks average what they hold."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ckptrun.errors import StateMismatchError
from ckptrun.local_part import local_part

__all__ = ["ExponentialMovingAverage"]


class ExponentialMovingAverage:
    """The ``ema`` component: average <- decay * average + (1 - decay) * weights, after every optimizer step.

    Args:
        weights: Returns the weights by name: tensors, or DTensors whose layout stays the same from call to call.
        decay: Share of the average that is kept, in [0, 1).
    """

    def __init__(self, weights: Callable[[], Mapping[str, Tensor]], *, decay: float) -> None:
        self._weights = weights
        self._decay = decay
        self._updates = 0
        self._average = {name: weight.detach().clone() for name, weight in weights().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Average the weights of this step in. Called on every rank (FSDP1 gathers its weights with collectives)."""
        weights = self._weights()
        self._updates += 1
        torch._foreach_lerp_(
            [local_part(average) for average in self._average.values()],
            [local_part(weights[name]) for name in self._average],
            1.0 - self._decay,
        )

    def state_dict(self) -> dict[str, Any]:
        """The live averages by the names of the weights, and how often they were updated."""
        return {"updates": self._updates, "average": dict(self._average)}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take averages and counter over, in place.

        Raises:
            StateMismatchError: ``state`` names other weights.
        """
        wrong = sorted(set(self._average) ^ set(state["average"]))
        if wrong:
            raise StateMismatchError(f"The average is of other weights: {wrong[:5]}.", leaves=wrong)
        self._updates = int(state["updates"])
        for name, average in self._average.items():
            local_part(average).copy_(local_part(state["average"][name]))
