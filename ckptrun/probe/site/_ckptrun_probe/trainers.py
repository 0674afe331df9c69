"""Which step trainers themselves say that they go on from."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

from _ckptrun_probe.record import quietly

__all__ = ["trainer_hooks"]

_Number = Callable[[Any, Any], Any]


def _of_lightning(connector: Any, _: Any) -> Any:
    return connector.trainer.global_step if getattr(connector, "_loaded_checkpoint", None) else None


def _of_deepspeed(engine: Any, result: Any) -> Any:
    return engine.global_steps if isinstance(result, tuple) and result[0] is not None else None


_CONNECTOR = ("_CheckpointConnector", "restore_training_state", "lightning.Trainer.global_step", _of_lightning)
# Module -> class, the method by which it loads, who counts, and the number that there is then (None: nothing came),
# by what the method was called on and what it has returned.
_LOADING: dict[str, tuple[str, str, str, _Number]] = {
    "transformers.trainer_callback": (
        "TrainerState",
        "load_from_json",
        "transformers.TrainerState.global_step",
        lambda _, state: state.global_step,
    ),
    "lightning.pytorch.trainer.connectors.checkpoint_connector": _CONNECTOR,
    "pytorch_lightning.trainer.connectors.checkpoint_connector": _CONNECTOR,
    "torchtitan.trainer": (
        "Trainer",
        "load_state_dict",
        "torchtitan.Trainer.step",
        lambda trainer, _: trainer.step,
    ),
    "deepspeed.runtime.engine": (
        "DeepSpeedEngine",
        "load_checkpoint",
        "deepspeed.DeepSpeedEngine.global_steps",
        _of_deepspeed,
    ),
}


def trainer_hooks(listener: Any) -> dict[str, Callable[[ModuleType], None]]:
    """What is to be done when a trainer's module is there."""
    return {name: functools.partial(_hook, listener, *how) for name, how in _LOADING.items()}


def _hook(listener: Any, kind: str, method: str, who: str, number: _Number, module: ModuleType) -> None:
    owner = getattr(module, kind)
    raw = vars(owner)[method]
    original = raw.__func__ if isinstance(raw, classmethod) else raw

    def tell(loads: Any, result: Any) -> None:
        found = number(loads, result)
        if found is not None:
            listener.record.event("counter", who=who, number=int(found), step=listener.taken)

    @functools.wraps(original)
    def load(self: Any, *arguments: Any, **options: Any) -> Any:
        result = original(self, *arguments, **options)
        quietly(listener.record, who, tell, self, result)
        return result

    setattr(owner, method, classmethod(load) if isinstance(raw, classmethod) else load)
