"""The loss scale of fp16, decided equally on all ranks. Must not know models, meshes or the optimizer."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ckptrun.config.precision import PrecisionConfig, PrecisionKind
from ckptrun.errors import InternalError, StateMismatchError
from ckptrun.local_part import local_part

__all__ = ["LossScaler"]

_FACTOR = 2.0
# The inverse must stay finite in fp32, however long a diverged run goes on.
_SMALLEST, _LARGEST = 2.0**-100, 2.0**100


class LossScaler:
    """Multiplies the loss so that fp16 gradients do not vanish, and leaves out steps whose gradients overflowed.

    Call order within a step: ``scale(loss).backward()`` for each micro-batch, ``unscale_`` once, the optimizer if it
    returned True, ``update``. For fp32 and bf16 it is disabled: losses and gradients pass as they are.

    torch's own scalers do not do for every parallelism: ``torch.amp.GradScaler`` decides for each rank on its own
    unless all gradients are DTensors, and ``ShardedGradScaler`` needs a process group; both fail on a mix of plain
    tensors and DTensors, or of DTensors on two meshes, which tensor parallelism produces. Here the local parts are
    unscaled, and one reduction over all ranks decides. Growth and backoff are torch's.

    Args:
        config: Kind, initial scale, growth interval.
        device: Where the ranks reduce: that of the parameters.
    """

    def __init__(self, config: PrecisionConfig, *, device: torch.device) -> None:
        self.enabled = config.kind is PrecisionKind.fp16
        self._device = device
        self._growth_interval = config.growth_interval
        self._scale = float(config.initial_scale)
        self._growth_tracker = 0
        self._finite: bool | None = None

    def scale(self, loss: Tensor) -> Tensor:
        """Return the loss to call ``backward`` on."""
        return loss * self._scale if self.enabled else loss

    @torch.no_grad()
    def unscale_(self, parameters: Iterable[Tensor]) -> bool:
        """Divide the gradients by the scale, in place; return whether those of all ranks are finite. All ranks call.

        Waits for the device.
        """
        if not self.enabled:
            return True
        if self._finite is not None:
            raise InternalError("LossScaler.unscale_ was called twice in a step; the gradients would be divided twice.")
        found = torch.zeros(1, device=self._device)
        inverse = torch.full((1,), 1.0 / self._scale, device=self._device)
        for gradients in _alike(parameters):
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found, inverse)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(found, op=dist.ReduceOp.MAX)
        self._finite = found.item() == 0.0
        return self._finite

    def update(self) -> None:
        """Halve the scale after an overflow, double it after ``precision.growth_interval`` steps without one."""
        if not self.enabled:
            return
        if self._finite is None:
            raise InternalError("LossScaler.update was called before unscale_ in a step.")
        if self._finite:
            self._growth_tracker += 1
            if self._growth_tracker >= self._growth_interval:
                self._scale, self._growth_tracker = min(self._scale * _FACTOR, _LARGEST), 0
        else:
            self._scale, self._growth_tracker = max(self._scale / _FACTOR, _SMALLEST), 0
        self._finite = None

    def state_dict(self) -> dict[str, Any]:
        """Scale, and steps without overflow since it last changed; nothing when disabled."""
        return {"scale": self._scale, "growth_tracker": self._growth_tracker} if self.enabled else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the scale over. Between steps only.

        Raises:
            StateMismatchError: ``state`` is of no, or another, scaler.
        """
        wrong = sorted(self.state_dict().keys() ^ state.keys())
        if not wrong and self.enabled and not (math.isfinite(state["scale"]) and state["scale"] > 0):
            wrong = ["scale"]
        if wrong:
            raise StateMismatchError(
                f"The loss scaler in the checkpoint has {dict(state)}, this one {self.state_dict()}. Use the "
                "precision it was saved with, or start with a new scale: checkpoint.load.exclude=[scaler].",
                leaves=[f"scaler.{key}" for key in wrong],
            )
        if self.enabled:
            self._scale, self._growth_tracker = float(state["scale"]), int(state["growth_tracker"])
            self._finite = None


def _alike(parameters: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """The local parts of all gradients, in lists of one device and dtype."""
    lists: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.is_sparse:
            # Entries of one row are summed first: the sum may overflow where they do not.
            gradient = parameter.grad = gradient.coalesce()
        local = local_part(gradient)
        local = local._values() if local.is_sparse else local
        lists.setdefault((local.device, local.dtype), []).append(local)
    return lists.values()
