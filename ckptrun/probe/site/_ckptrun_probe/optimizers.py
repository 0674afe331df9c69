"""What an optimizer holds, by name: parameters, gradients, moments, and the options of its groups."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from _ckptrun_probe.names import Names

__all__ = ["gradients", "moments", "options"]

_NOT_OPTIONS = ("params", "initial_lr")


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
    """``<prefix>.<parameter>.<moment>`` and its value: a tensor, or a number."""
    import torch

    for name, parameter in _named(optimizer, names):
        state = optimizer.state.get(parameter) if hasattr(optimizer.state, "get") else None
        for key, value in state.items() if isinstance(state, dict) else ():
            if isinstance(value, torch.Tensor) or _is_plain(value):
                yield f"{prefix}.{name}.{key}", value


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
