"""What is minimised. Must not know which model computes, or on how many ranks."""

from collections.abc import Callable, Mapping
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.nn import functional

from ckptrun.config.model import Loss
from ckptrun.errors import ConfigError

__all__ = ["LossFunction", "build_loss"]

LossFunction = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(module, input, target) -> the mean loss over this rank's samples, 0-dim fp32."""


def build_loss(loss: Loss) -> LossFunction:
    """The function that runs the model on one micro-batch and compares.

    Outputs in half precision are compared in fp32.
    """
    match loss:
        case Loss.cross_entropy:
            return _cross_entropy
        case Loss.mse:
            return _mse
        case Loss.model:
            return _of_model
        case _:
            assert_never(loss)


def _cross_entropy(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    output = _tensor_of(module(inputs), "logits").float()
    if output.shape[:-1] != targets.shape:
        raise ConfigError(
            "model.loss=cross_entropy compares an output (..., classes) with targets (...), but the model's output is "
            f"{tuple(output.shape)} and the data's targets are {tuple(targets.shape)}. "
            "Change the model or the data, or use model.loss=model and let the model compute its loss."
        )
    return functional.cross_entropy(output.flatten(0, -2), targets.flatten())


def _mse(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    output = _tensor_of(module(inputs), "logits").float()
    if output.shape != targets.shape:
        raise ConfigError(
            f"model.loss=mse compares tensors of one shape, but the model's output is {tuple(output.shape)} and the "
            f"data's targets are {tuple(targets.shape)}. Change the model or the data."
        )
    return functional.mse_loss(output, targets)


def _of_model(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    loss = _tensor_of(module(inputs, targets), "loss")
    if loss.dim() != 0:
        raise ConfigError(
            f"model.loss=model needs model(input, target) to return a 0-dim tensor, got {tuple(loss.shape)}."
        )
    return loss.to(torch.float32)


def _tensor_of(output: Any, part: str) -> Tensor:
    """The tensor that a model returned, or that stands under ``part`` in an object or dict of several outputs."""
    if isinstance(output, Tensor):
        return output
    found = output.get(part) if isinstance(output, Mapping) else getattr(output, part, None)
    if isinstance(found, Tensor):
        return found
    wanted = "model(input, target) to return a 0-dim tensor" if part == "loss" else "model(input) to return a tensor"
    beside = "" if found is None else f" whose {part!r} is a {type(found).__name__}"
    raise ConfigError(
        f"model.loss={'model' if part == 'loss' else 'cross_entropy or mse'} needs {wanted}, or an object or dict with "
        f"a tensor {part!r}, got {type(output).__name__}{beside}."
    )
