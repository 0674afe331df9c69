"""Optimizers that need whole matrices, on parameters that are spread over ranks. Must not know which optimizer it is.

Muon orthogonalises whole matrices, Adafactor takes means of whole rows and columns. On DTensors torch's Muon adds
partial products in another order than on one device, and torch's Adafactor fails. Computed on whole tensors, both give
the bits that one device would give, on every mesh.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ckptrun.optimizer.disjoint import gather_whole, own_box

__all__ = ["WholeTensors"]


class WholeTensors(Optimizer):
    """Lets ``inner`` update one whole parameter after the other; plain parameters go to it as they are.

    All ranks of a DTensor's mesh must have a gradient for it, or none. Costs one reduction of the parameter, of its
    gradient and of each moment of its shape per step, and the memory of these for one parameter at a time. Moments of
    the parameter's shape stay sharded as it is; others (rows, columns, counters) are plain, equal on all ranks.

    Args:
        inner: An optimizer of torch that updates parameters one by one and keeps nothing but ``state``.
    """

    def __init__(self, inner: Optimizer) -> None:
        # The same dicts: options that a scheduler changes are those that inner reads.
        super().__init__(inner.param_groups, {})
        self._inner = inner

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient. All ranks call."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            plain = [parameter for parameter in group["params"] if not isinstance(parameter, DTensor)]
            if plain:
                self._run_inner(group, plain, self.state)
            for parameter in group["params"]:
                if isinstance(parameter, DTensor) and parameter.grad is not None:
                    self._step_whole(group, parameter)
        return loss

    def _run_inner(self, group: dict[str, Any], parameters: list[Any], state: defaultdict[Any, Any]) -> None:
        self._inner.param_groups = [{**group, "params": parameters}]
        self._inner.state = state
        self._inner.step()

    def _step_whole(self, group: dict[str, Any], parameter: DTensor) -> None:
        whole = nn.Parameter(gather_whole(parameter), requires_grad=False)
        whole.grad = _gathered(_placed_as(parameter, parameter.grad))
        own = self.state[parameter]
        state = defaultdict(dict, {whole: {key: _gathered(value) for key, value in own.items()}})
        self._run_inner(group, [whole], state)
        box = own_box(parameter)
        for key, value in state[whole].items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                if key not in own:
                    own[key] = torch.zeros_like(parameter, dtype=value.dtype)
                own[key].to_local().copy_(value[box])
            else:
                own[key] = value
        parameter.to_local().copy_(whole[box])


def _placed_as(parameter: DTensor, gradient: Any) -> Any:
    """A gradient may come as partial sums."""
    if isinstance(gradient, DTensor) and gradient.placements != parameter.placements:
        return gradient.redistribute(placements=parameter.placements)
    return gradient


def _gathered(value: Any) -> Any:
    return gather_whole(value) if isinstance(value, DTensor) else value
