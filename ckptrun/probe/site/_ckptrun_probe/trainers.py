"""Which step trainers themselves say that they go on from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from _ckptrun_probe.record import quietly

__all__ = ["trainer_hooks"]


def trainer_hooks(listener: Any) -> dict[str, Callable[[ModuleType], None]]:
    """What is to be done when a trainer's module is there."""

    def count(who: str, number: Any) -> None:
        listener.record.event("counter", who=who, number=int(number), step=listener.taken)

    def of_transformers(module: ModuleType) -> None:
        original = module.TrainerState.load_from_json.__func__

        @functools.wraps(original)
        def load_from_json(cls: Any, *arguments: Any, **options: Any) -> Any:
            state = original(cls, *arguments, **options)
            who = "transformers.TrainerState.global_step"
            quietly(listener.record, "transformers", count, who, state.global_step)
            return state

        module.TrainerState.load_from_json = classmethod(load_from_json)

    def of_lightning(module: ModuleType) -> None:
        connector = module._CheckpointConnector
        original = connector.restore_training_state

        @functools.wraps(original)
        def restore_training_state(self: Any, *arguments: Any, **options: Any) -> Any:
            result = original(self, *arguments, **options)
            if getattr(self, "_loaded_checkpoint", None):
                who = "lightning.Trainer.global_step"
                quietly(listener.record, "lightning", lambda: count(who, self.trainer.global_step))
            return result

        connector.restore_training_state = restore_training_state

    place = "trainer.connectors.checkpoint_connector"
    return {
        "transformers.trainer_callback": of_transformers,
        f"lightning.pytorch.{place}": of_lightning,
        f"pytorch_lightning.{place}": of_lightning,
    }
