"""How a bug gets into every rank of a job: as a component whose making changes ckptrun's own classes.

Components are built on each rank before anything is loaded or trained, and on every start, so the bug is always there.
Most bugs act only where something is saved or loaded, so a run that does neither comes out right.
"""

import functools
import inspect
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

__all__ = ["Bug", "during", "is_resumed", "local", "moments", "rank", "training_of", "world_size", "wrap"]

_PLANTED: set[type] = set()


class Bug:
    """A component without a state of its own. ``plant`` is called once in each process."""

    def __init__(self, **arguments: Any) -> None:
        if type(self) not in _PLANTED:
            _PLANTED.add(type(self))
            self.plant(**arguments)

    def plant(self, **arguments: Any) -> None:
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def wrap(owner: Any, name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: put a function in the place of ``owner.name``; it gets what stood there as its first argument."""

    def put(function: Callable[..., Any]) -> Callable[..., Any]:
        original = getattr(owner, name)

        @functools.wraps(original)
        def changed(*args: Any, **kwargs: Any) -> Any:
            return function(original, *args, **kwargs)

        is_static = inspect.isclass(owner) and isinstance(inspect.getattr_static(owner, name), staticmethod)
        setattr(owner, name, staticmethod(changed) if is_static else changed)
        return function

    return put


def during(owner: Any, name: str) -> list[str]:
    """Return a list that is empty but while ``owner.name`` runs."""
    running: list[str] = []

    @wrap(owner, name)
    def run(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        running.append(name)
        try:
            return original(*args, **kwargs)
        finally:
            running.pop()

    return running


def rank() -> int:
    return int(os.environ["RANK"])


def world_size() -> int:
    return int(os.environ["WORLD_SIZE"])


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` that this rank holds, live."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def training_of(trainer: Any) -> Any:
    return trainer._training


def is_resumed(training: Any) -> bool:
    return training.progress.step > 0


def moments(optimizer: torch.optim.Optimizer, key: str = "exp_avg") -> Iterator[Tensor]:
    """The live parts of one moment of every parameter."""
    for values in optimizer.state.values():
        if isinstance(values.get(key), Tensor):
            yield local(values[key])
