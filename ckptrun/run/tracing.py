"""Ties a tracer to the objects of a run, and knows which of them are still those that were built."""

from typing import Any

from ckptrun.config.run import RunConfig
from ckptrun.evidence.trace import Tracer, Watched
from ckptrun.optimizer import OptimizerState
from ckptrun.parallelism import clean_name
from ckptrun.run.leg import TraceWindow
from ckptrun.trainer import Training

__all__ = ["Originals"]

_PARTS = ("optimizer", "schedule", "scaler", "ema", "progress")


class Originals:
    """What a run was built of, before anything was loaded.

    Args:
        training: Just built.
    """

    def __init__(self, training: Training) -> None:
        self._training = training
        self._built: dict[str, Any] = {name: getattr(training, name) for name in _PARTS}

    def replaced(self) -> list[str]:
        """Components that the loop has another object for than was built, or than is saved."""
        found = [name for name, built in self._built.items() if getattr(self._training, name) is not built]
        saved = self._training.state.components.get("optimizer")
        if isinstance(saved, OptimizerState) and not saved.is_of(self._training.optimizer):
            found.append("optimizer")
        return sorted(set(found))

    def tracer(self, config: RunConfig, window: TraceWindow, *, rank: int) -> Tracer:
        """Return a tracer of the training that was built."""
        training = self._training
        watched = Watched(
            module=training.model.inner,
            parameters=training.model.named_parameters,
            name_of=clean_name,
            is_compiled=config.train.compile,
            optimizer=lambda: training.optimizer,
            scale=lambda: training.scaler.state_dict(),
            replaced=self.replaced,
        )
        steps = range(window.first_step, window.last_step + 1)
        return Tracer(config.run_dir, rank, steps=steps, watched=watched)
