"""Group C: counters, learning rate, loss scale, averages, callbacks."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch.optim.lr_scheduler import ConstantLR, SequentialLR

from ckptrun.data.stream import DataStream
from ckptrun.optimizer import state as optimizer_state
from ckptrun.precision import LossScaler
from ckptrun.run.resume import Restorer
from ckptrun.schedule import StepSchedule
from ckptrun.state import ExponentialMovingAverage, Progress
from ckptrun.state.components import TrainingState
from ckptrun.trainer import Trainer
from tests.zoo.planted.seam import Bug, is_resumed, world_size, wrap


def _when_settled(change) -> None:
    """Call ``change(training)`` when a resumed start has loaded all and checked it."""

    @wrap(Restorer, "settle")
    def settle(original, built):
        original(built)
        if is_resumed(built.training):
            change(built.training)


class SavedBeforeItsStep(Bug):
    """The checkpoint is written between the optimizer's step and the schedule's."""

    def plant(self) -> None:
        before = {}

        @wrap(StepSchedule, "step")
        def step(original, schedule, *args):
            if hasattr(schedule, "_last_lr"):
                before[schedule] = StepSchedule.state_dict.__wrapped__(schedule)
            original(schedule, *args)

        @wrap(StepSchedule, "load_state_dict")
        def load(original, schedule, state):
            original(schedule, state)
            before.pop(schedule, None)

        @wrap(StepSchedule, "apply")
        def apply(original, schedule):
            original(schedule)
            before.pop(schedule, None)

        @wrap(StepSchedule, "state_dict")
        def state_dict(original, schedule):
            return before.get(schedule) or original(schedule)


class Sequence(SequentialLR):
    """Goes on by its own counter alone; the schedules in it begin anew."""

    def __init__(self, optimizer) -> None:
        parts = [ConstantLR(optimizer, factor=0.5, total_iters=2), ConstantLR(optimizer, factor=0.1, total_iters=3)]
        super().__init__(optimizer, parts, milestones=[2])

    def state_dict(self) -> dict[str, Any]:
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last_epoch = state["last_epoch"]


class SteppedAtLoad(Bug):
    """``load_state_dict`` of the schedule ends with a step, as building one does."""

    def plant(self) -> None:
        @wrap(StepSchedule, "load_state_dict")
        def load(original, schedule, state):
            original(schedule, state)
            schedule.step()


class SteppedAfterLoad(Bug):
    """``for _ in range(step): schedule.step()``, on a schedule that has its state already."""

    def plant(self) -> None:
        _when_settled(lambda training: [training.schedule.step() for _ in range(training.progress.step)])


class RestoredOnlyIfAsked(Bug):
    """Always saved, loaded only with a flag that is off."""

    def plant(self) -> None:
        @wrap(StepSchedule, "load_state_dict")
        def load(original, schedule, state):
            pass


class LoadedAndNotApplied(Bug):
    """After a refactoring nobody calls ``load_state_dict`` of what is no tensor."""

    def plant(self) -> None:
        @wrap(TrainingState, "load")
        def load(original, state, leaves, *containers):
            original(
                state,
                {path: value for path, value in leaves.items() if path[0] not in ("schedule", "progress")},
                *containers,
            )


class ScaleNotLoaded(Bug):
    """The scaler's ``load_state_dict`` does nothing."""

    def plant(self) -> None:
        @wrap(LossScaler, "load_state_dict")
        def load(original, scaler, state):
            pass


class NotInTheState(Bug):
    """The checkpoint knows nothing of one component."""

    def plant(self, component: str) -> None:
        @wrap(TrainingState, "__init__")
        def make(original, state, components):
            original(state, {name: part for name, part in components.items() if name != component})


class AverageNotLoaded(Bug):
    """The average's ``load_state_dict`` does nothing."""

    def plant(self) -> None:
        @wrap(ExponentialMovingAverage, "load_state_dict")
        def load(original, average, state):
            pass


class AverageBegunAnew(Bug):
    """Made from the weights again when they are loaded."""

    def plant(self) -> None:
        def begin(training) -> None:
            training.ema.load_state_dict({"updates": 0, "average": training.ema._weights()})

        _when_settled(begin)


class StepCountedLate(Bug):
    """Saved by a hook of the batch's end that runs before the step is counted."""

    def plant(self) -> None:
        stepped = []

        @wrap(DataStream, "next_batch")
        def next_batch(original, stream):
            stepped[:] = [True]
            return original(stream)

        @wrap(Progress, "state_dict")
        def state_dict(original, progress):
            state = original(progress)
            return {**state, "step": state["step"] - bool(stepped)}


class OneStepMore(Bug):
    """A resumed loop counts its first step as none."""

    def plant(self) -> None:
        @wrap(Trainer, "__init__")
        def make(original, trainer, training, plan, **rest):
            more = int(is_resumed(training))
            original(trainer, training, replace(plan, steps=plan.steps + more), **rest)


class OneStepFewer(Bug):
    """A resumed loop ends one step early."""

    def plant(self) -> None:
        @wrap(Trainer, "__init__")
        def make(original, trainer, training, plan, **rest):
            fewer = int(is_resumed(training))
            original(trainer, training, replace(plan, steps=plan.steps - fewer), **rest)


class CountedBeforeTheEnd(Bug):
    """Each resume counts a step that it does not take."""

    def plant(self) -> None:
        def count(training) -> None:
            training.progress.step += 1

        _when_settled(count)


class CountedAtLoad(Bug):
    """The counter is one ahead of what was saved."""

    def plant(self) -> None:
        @wrap(Progress, "load_state_dict")
        def load(original, progress, state):
            original(progress, {**state, "step": state["step"] + 1})


class CopyInTheState(Bug):
    """Loading puts a copy of a component into the state; the loop goes on with the one it has."""

    def plant(self, component: str) -> None:
        @wrap(TrainingState, "load")
        def load(original, state, leaves, *containers):
            original(state, leaves, *containers)
            state.components[component] = copy.copy(state.components[component])
            if component == "schedule":
                state.components[component].wrapped = copy.copy(state.components[component].wrapped)


class GroupStepForgotten(Bug):
    """The step that an optimizer counts in its groups is taken for an option and left as it was made."""

    def plant(self) -> None:
        @wrap(optimizer_state, "write_groups")
        def write(original, optimizer, saved):
            before = [group["k"] for group in optimizer.param_groups]
            original(optimizer, saved)
            for group, k in zip(optimizer.param_groups, before, strict=True):
                group["k"] = k


class StepsOfAllRanks(Bug):
    """The schedule was stepped by every rank and is restored by the steps of one."""

    def plant(self) -> None:
        def divide(training) -> None:
            training.schedule.last_epoch //= world_size()
            training.schedule.apply()

        _when_settled(divide)


class Patience:
    """Early stopping: how long the loss has not become better."""

    def __init__(self) -> None:
        self.best, self.waited = float("inf"), 0

    def on_step(self, *, step: int, loss: float) -> None:
        self.waited = 0 if loss < self.best else self.waited + 1
        self.best = min(self.best, loss)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]


class BestForgotten(Patience):
    """Every loss is the best one after a resume."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.waited = state["waited"]


class ResetAtStart(Patience):
    """``on_train_start`` resets what was loaded."""

    def __init__(self) -> None:
        super().__init__()
        _when_settled(lambda training: self._reset())

    def _reset(self) -> None:
        self.best, self.waited = 0.0, -100
