"""The loop: train, save, until the last step. Knows no config, no files, no launcher."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.checkpoint.policy import SaveInterval
from ckptrun.config.fault import FaultPoint
from ckptrun.data import DataStream
from ckptrun.errors import ConfigError
from ckptrun.parallelism import ParallelModel
from ckptrun.precision import LossScaler
from ckptrun.state import ExponentialMovingAverage, Progress
from ckptrun.state.components import TrainingState

__all__ = ["LoopPlan", "Observer", "StepFacts", "Trainer", "Training"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Everything that a run computes with, built and laid out on the mesh."""

    model: ParallelModel
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    optimizer: Optimizer
    schedule: Any
    """A torch LR scheduler or an object with ``step``, ``state_dict`` and ``load_state_dict``."""
    stream: DataStream
    scaler: LossScaler
    ema: ExponentialMovingAverage | None
    progress: Progress
    extra: Mapping[str, Any]
    """Components of the user's own, by name; those with ``on_step(step=, loss=)`` are told of each step."""
    state: TrainingState
    device: torch.device


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopPlan:
    """The numbers of the loop."""

    steps: int
    accumulate: int
    clip_norm: float | None
    samples_per_step: int
    save: SaveInterval | None
    """None: nothing is saved."""
    may_change_early: bool = True
    """Whether anything but the update at the end of a step may change the state: buffers and parameters in forward or
    backward, a dataset that is its own state. False only where all that runs until then is known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFacts:
    """What one step came to."""

    step: int
    loss: float
    """Mean over micro-batches and ranks."""
    gradient_norm: float
    """Global, before clipping."""
    learning_rate: float
    """The one the step was taken with."""
    samples: int
    samples_before: int
    """What all ranks together had seen when the step began, over all starts."""
    seconds: float
    skipped: bool
    shall_end: bool
    """Whether a rank was asked to end; the same on all ranks."""


class Observer(Protocol):
    """Is told of each point that the loop comes by, of each micro-batch before it is used, and of each step.

    On every rank, in this order: ``before_step``; for each micro-batch ``on_batch`` and ``after_forward``, and
    ``mid_accumulation`` between two; ``after_backward``, ``after_optimizer``, ``on_step``; then what the save that may
    be due comes by. Beside these, each part of a step when it is over.
    """

    def reached(self, point: FaultPoint, step: int) -> None:
        """Take note of how far the loop is. May not return: that is what faults do."""

    def on_batch(self, inputs: Tensor, targets: Tensor) -> None:
        """Take note of what this rank is going to compute with."""

    def on_part(self, part: str, owner: str) -> None:
        """Take note that a part of the step is over, in which code of the component ``owner`` ran.

        ``forward`` and ``backward`` of each micro-batch, ``update``, ``schedule``, ``ema``, and ``on_step`` of each
        component that has it.
        """

    def on_step(self, facts: StepFacts) -> bool:
        """Take note of ``facts``, before they are saved; True, on all ranks alike, ends the loop after this step."""


class Trainer:
    """Takes optimizer steps until ``plan.steps`` are done. All ranks call everything.

    Args:
        training: Built objects, fresh or loaded.
        plan: How far and how.
        manager: Where checkpoints go.
        observer: Is told of each step.
        after_save: Called after each requested save with the step, e.g. to check it.
        is_asked_to_end: Whether this rank shall end before its time; if any rank shall, all end at the next step
            boundary, having saved.
    """

    def __init__(
        self,
        training: Training,
        plan: LoopPlan,
        *,
        manager: CheckpointManager,
        observer: Observer,
        after_save: Callable[[int], None] = lambda _: None,
        is_asked_to_end: Callable[[], bool] = lambda: False,
    ) -> None:
        self._training = training
        self._plan = plan
        self._manager = manager
        self._observer = observer
        self._after_save = after_save
        self._is_asked_to_end = is_asked_to_end

    def run(self) -> bool:
        """Train up to the last step, or until somebody ends it; return whether somebody has.

        On return every requested checkpoint is committed, that of the last step taken included.
        """
        progress = self._training.progress
        ends = False
        while progress.step < self._plan.steps and not ends:
            self._observer.reached(FaultPoint.before_step, progress.step + 1)
            facts = self._train_step()
            ends = self._observer.on_step(facts) or facts.shall_end
            self._save_if_due(progress.step, is_last=ends)
        self._manager.wait()
        return ends and progress.step < self._plan.steps

    def _save_if_due(self, step: int, *, is_last: bool) -> None:
        self._manager.poll()
        if self._plan.save is not None and (is_last or self._plan.save.should_save(step)):
            self._manager.save(self._training.state, step)
            self._after_save(step)

    def _train_step(self) -> StepFacts:
        began = time.perf_counter()
        training = self._training
        if self._plan.may_change_early or training.model.has_buffers:
            # A save may still copy the state, which must be as it was requested.
            self._manager.wait_staged()
        loss = self._forward_backward()
        # From here on parameters and moments change.
        self._manager.wait_staged()
        step = training.progress.step + 1
        self._observer.reached(FaultPoint.after_backward, step)
        norm, skipped = self._update()
        self._observer.on_part("update", "optimizer")
        self._observer.reached(FaultPoint.after_optimizer, step)
        learning_rate = training.optimizer.param_groups[0]["lr"]
        training.schedule.step()
        self._observer.on_part("schedule", "schedule")
        if training.ema is not None:
            training.ema.update()
            self._observer.on_part("ema", "ema")
        progress = training.progress
        progress.step += 1
        progress.samples += self._plan.samples_per_step
        progress.skipped_steps += skipped
        mean_loss, shall_end = self._agree(loss)
        for name, component in training.extra.items():
            if hasattr(component, "on_step"):
                component.on_step(step=progress.step, loss=mean_loss)
                self._observer.on_part("on_step", name)
        return StepFacts(
            step=progress.step,
            loss=mean_loss,
            gradient_norm=float(norm),
            learning_rate=float(learning_rate),
            samples=self._plan.samples_per_step,
            samples_before=progress.samples - self._plan.samples_per_step,
            seconds=time.perf_counter() - began,
            skipped=skipped,
            shall_end=shall_end,
        )

    def _forward_backward(self) -> Tensor:
        """Accumulate gradients over the micro-batches of one step; return this rank's mean loss."""
        training, passes = self._training, self._plan.accumulate
        step = training.progress.step + 1
        total = torch.zeros((), device=training.device)
        for index in range(passes):
            inputs, targets = training.stream.next_batch()
            inputs, targets = (
                _on_device("input", inputs, training.device),
                _on_device("target", targets, training.device),
            )
            self._observer.on_batch(inputs, targets)
            with training.model.accumulating(last=index == passes - 1):
                loss = training.loss(training.model.module, inputs, targets) / passes
                self._observer.on_part("forward", "model")
                self._observer.reached(FaultPoint.after_forward, step)
                training.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach().float()
            if index < passes - 1:
                self._observer.on_part("backward", "model")
                self._observer.reached(FaultPoint.mid_accumulation, step)
        training.model.sync_buffers()
        self._observer.on_part("backward", "model")
        return total

    def _update(self) -> tuple[Tensor, bool]:
        """Take the optimizer step; return the gradient norm before clipping, and whether the step was skipped."""
        training, clip_norm = self._training, self._plan.clip_norm
        finite = training.scaler.unscale_(training.model.named_parameters.values())
        norm = training.model.global_norm()
        if clip_norm is not None and finite:
            training.model.scale_gradients(torch.clamp(clip_norm / (norm + 1e-6), max=1.0))
        if finite:
            _take_step(training.optimizer)
        training.scaler.update()
        training.optimizer.zero_grad(set_to_none=True)
        return norm, not finite

    def _agree(self, loss: Tensor) -> tuple[float, bool]:
        """Mean loss over all ranks, and whether one of them was asked to end, in one reduction.

        Tensor-parallel ranks hold the same loss, so they do not shift the mean.
        """
        both = torch.stack([loss, torch.full_like(loss, float(self._is_asked_to_end()))])
        if dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(both)
            both[0] /= dist.get_world_size()
        mean, asked = both.tolist()
        return mean, asked > 0


def _on_device(what: str, part: Any, device: torch.device) -> Tensor:
    if not isinstance(part, Tensor):
        shown = f"a dict of {sorted(map(str, part))}" if isinstance(part, Mapping) else f"a {type(part).__name__}"
        raise ConfigError(
            f"data: the {what} of a batch is {shown}, and a sample must be a pair (input, target) of tensors. Let the "
            "dataset return what the model needs of it as one tensor each, or stack it."
        )
    return part.to(device)


def _take_step(optimizer: Optimizer) -> None:
    try:
        optimizer.step()
    except RuntimeError as error:
        # That is how every optimizer of torch says that it takes dense, or only sparse, gradients.
        if "sparse gradients" not in str(error) and "dense gradients" not in str(error):
            raise
        raise ConfigError(
            f"The optimizer {type(optimizer).__name__} cannot use a gradient of this model: {error}. Sparse gradients "
            "come from embeddings with sparse=True; torch.optim.SGD and Adagrad take both, SparseAdam sparse ones."
        ) from error
