"""A torch learning rate scheduler whose state is plain, named by parameter group, and loaded without a step.

Must not know where the state is stored, nor the optimizer's own state.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ckptrun.config.schedule import ScheduleConfig
from ckptrun.errors import StateMismatchError
from ckptrun.schedule.curves import Curve, curve

__all__ = ["StepSchedule", "build_schedule"]

_STEP, _BASE, _LAST = "step", "base_lrs", "last_lrs"


def build_schedule(config: ScheduleConfig, optimizer: Optimizer, *, steps: int) -> "StepSchedule":
    """Return the schedule for a run of ``steps`` steps; the optimizer gets the learning rate of its first step.

    Build it before the optimizer is loaded: building sets learning rates, loading puts them right.
    """
    return StepSchedule(optimizer, curve(config, steps=steps))


class StepSchedule(LambdaLR):
    """Each group's peak learning rate times a share that depends on the number of steps done.

    torch's ``state_dict`` of schedulers is a copy of the attributes, in lists by position of the group; groups come and
    go with the mesh (see ``parameter_groups``), so here the state names them.
    """

    def __init__(self, optimizer: Optimizer, share: Curve) -> None:
        super().__init__(optimizer, share)
        # torch warns when the first step of the schedule comes before one of the optimizer. A step that was skipped
        # because fp16 overflowed counts, so it may.
        self._step_count += 1

    def state_dict(self) -> dict[str, Any]:
        """Return plain values: steps done, and per group name the peak and the last learning rate."""
        return {
            _STEP: self.last_epoch,
            _BASE: self._by_group(self.base_lrs),
            _LAST: self._by_group(self.get_last_lr()),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where ``state_dict`` was taken. Takes no step and leaves the optimizer alone: its rates come with it.

        Raises:
            StateMismatchError: It is the state of another kind of scheduler, or of other parameter groups.
        """
        self._check(state_dict)
        self.last_epoch = int(state_dict[_STEP])
        self.base_lrs = self._by_position(self.base_lrs, state_dict[_BASE])
        self._last_lr = self._by_position(self._last_lr, state_dict[_LAST])

    def apply(self) -> None:
        """Give the optimizer the rates that the curve has for the steps done.

        After a load these are, bit for bit, the rates that came with the optimizer, unless the run was made longer or
        shorter in between: then the next step would still be taken with the old curve's rate.
        """
        self.last_epoch -= 1
        self.step()

    def _check(self, state: Mapping[str, Any]) -> None:
        here = {_STEP: None, _BASE: set(self._names()), _LAST: set(self._names())}
        wrong = sorted(here.keys() ^ state.keys())
        wrong += [key for key in (_BASE, _LAST) if key in state and set(state[key]) != here[key]]
        if wrong:
            raise StateMismatchError(
                f"The schedule in the checkpoint is not of this kind or not for these parameter groups: {wrong[0]} is "
                f"{state.get(wrong[0])!r}, and the groups here are {sorted(set(self._names()))}. Use the optimizer and "
                "the schedule it was saved with, or start the schedule anew: checkpoint.load.exclude=[schedule].",
                leaves=[f"schedule.{key}" for key in wrong],
            )

    def _names(self) -> list[str]:
        groups = self.optimizer.param_groups
        return [str(group.get("name", f"group_{index}")) for index, group in enumerate(groups)]

    def _by_group(self, values: list[float | Tensor]) -> dict[str, float]:
        return {name: float(value) for name, value in zip(self._names(), values, strict=True)}

    def _by_position(self, old: list[float | Tensor], new: Mapping[str, float]) -> list[float | Tensor]:
        """``new`` in the order of the groups, each of the type of the old one; tensors are filled in place."""
        named = zip(self._names(), old, strict=True)
        return [value.fill_(new[name]) if isinstance(value, Tensor) else float(new[name]) for name, value in named]
