"""The optimizers of a job, and what each holds, by name: parameters, gradients, moments, options of its groups."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

from _ckptrun_probe.names import Names, find_names

__all__ = ["Stepped", "gradients", "moments", "options"]

_NOT_OPTIONS = ("params", "initial_lr")
_DEEPEST = 4


class Stepped:
    """The optimizers that have been stepped, in the order of their first steps in the reference.

    Args:
        expected: Of each that the reference has stepped, what it is; see :meth:`sign`. It has that place here whichever
            is stepped first.
    """

    def __init__(self, expected: list[str]) -> None:
        self._expected = expected
        self._known: list[Callable[[], Any]] = [_nobody] * len(expected)
        self.names: Names = Names()

    def index(self, optimizer: Any) -> int:
        """Its place; -1: it was not stepped before."""
        return next((index for index, reference in enumerate(self._known) if reference() is optimizer), -1)

    def register(self, optimizer: Any) -> bool:
        """Note an optimizer; return whether it is new, in which case the modules of the process are looked for."""
        is_new = self.index(optimizer) < 0
        if not is_new and all(id(p) in self.names.parameters for p in _parameters(optimizer)):
            return False
        self.names = find_names([*self._alive(), optimizer])
        if is_new:
            place = self._place(self.sign(optimizer))
            self._known[place : place + 1] = [weakref.ref(optimizer)]
        return is_new

    def _place(self, sign: str) -> int:
        """One that is built anew takes the place of the one that is gone."""
        gone = [index for index, reference in enumerate(self._known) if reference() is None]
        alike = [index for index in gone if index < len(self._expected) and self._expected[index] == sign]
        return next(iter([*alike, *gone]), len(self._known))

    def sign(self, optimizer: Any) -> str:
        """What an optimizer is: its class, and the names of its parameters."""
        names = sorted(self.names.parameters.get(id(p), "?") for p in _parameters(optimizer))
        return " ".join([type(optimizer).__name__, *names])

    def homeless(self) -> list[tuple[str, Any]]:
        """Parameters that no module has, of all of them."""
        names = self.names
        held = [p for optimizer in self._alive() for p in _parameters(optimizer)]
        return [(f"model.{names.parameters[id(p)]}", p) for p in held if id(p) in names.homeless]

    def _alive(self) -> list[Any]:
        return [optimizer for optimizer in (reference() for reference in self._known) if optimizer is not None]


def _nobody() -> None:
    return None


def _parameters(optimizer: Any) -> list[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _named(optimizer: Any, names: Names) -> Iterator[tuple[str, Any]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield names.parameters.get(id(parameter), "?"), parameter


def gradients(optimizer: Any, names: Names) -> Iterator[tuple[str, Any]]:
    """``gradients.<parameter>`` and the gradient that the step is going to take."""
    for name, parameter in _named(optimizer, names):
        if parameter.grad is not None:
            yield f"gradients.{name}", parameter.grad


def moments(optimizer: Any, names: Names, prefix: str) -> Iterator[tuple[str, Any]]:
    """``<prefix>.<parameter>.<moment>`` and its value: a tensor, or a number; those within lists and dicts too."""
    for name, parameter in _named(optimizer, names):
        state = optimizer.state.get(parameter) if hasattr(optimizer.state, "get") else None
        if isinstance(state, dict):
            yield from _values(state, f"{prefix}.{name}", 0)


def _values(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor) or _is_plain(value):
        yield name, value
    elif isinstance(value, (dict, list, tuple)) and depth < _DEEPEST:
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _values(inner, f"{name}.{key}", depth + 1)


def options(optimizer: Any, prefix: str, schedule: str) -> Iterator[tuple[str, str]]:
    """What is set for each group: ``<schedule>.learning_rate.<group>``, ``<prefix>.groups.<group>.<option>``."""
    for index, group in enumerate(optimizer.param_groups):
        for key, value in group.items():
            if key in _NOT_OPTIONS or value is None:
                continue
            name = f"{schedule}.learning_rate.{index}" if key == "lr" else f"{prefix}.groups.{index}.{key}"
            text = _text(value)
            if text is not None:
                yield name, text


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))


def _text(value: Any) -> str | None:
    """What a person reads of an option, bits and all; None of what is neither a number nor a text."""
    import torch

    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, (list, tuple)):
        parts = [_text(part) for part in value]
        return None if None in parts else f"[{', '.join(str(part) for part in parts)}]"
    return str(value) if _is_plain(value) else None
