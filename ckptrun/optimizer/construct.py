"""The built-in optimizers, from their configs. Must not know models: names say what a parameter is."""

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ckptrun.config.optimizer import AdafactorConfig, AdamConfig, AdamWConfig, MuonConfig, OptimizerConfig, SGDConfig
from ckptrun.errors import InternalError
from ckptrun.optimizer.groups import layout_groups, parameter_groups
from ckptrun.optimizer.joined import JoinedOptimizer
from ckptrun.optimizer.whole import WholeTensors

__all__ = ["build_optimizer"]


def build_optimizer(
    config: OptimizerConfig,
    named_parameters: Mapping[str, nn.Parameter],
    *,
    decayed: Container[str],
    matrices: Container[str] = (),
) -> Optimizer:
    """Return the optimizer that ``config`` describes. All ranks call.

    Args:
        config: Kind and options.
        named_parameters: Every parameter of the model, frozen ones too; laid out on the mesh already.
        decayed: Names of those that get weight decay.
        matrices: Names of the weights of hidden layers, not of embeddings or output layers; those with two dims go to
            Muon.
    """
    groups = parameter_groups(named_parameters, decayed=decayed, weight_decay=config.weight_decay)
    match config:
        case SGDConfig():
            return torch.optim.SGD(
                groups,
                lr=config.lr,
                momentum=config.momentum,
                nesterov=config.nesterov,
                foreach=config.foreach,
                fused=config.fused,
            )
        case AdamWConfig():
            return torch.optim.AdamW(groups, **_adam_options(config))
        case AdamConfig():
            return torch.optim.Adam(groups, **_adam_options(config))
        case AdafactorConfig():
            return _on_whole_tensors(torch.optim.Adafactor(groups, lr=config.lr, foreach=config.foreach))
        case MuonConfig():
            return _muon(config, named_parameters, decayed=decayed, matrices=matrices)
        case _:
            raise InternalError(f"No optimizer is known for {type(config).__name__}.")


def _adam_options(config: AdamConfig) -> dict[str, Any]:
    return {
        "lr": config.lr,
        "betas": (config.beta1, config.beta2),
        "eps": config.eps,
        "amsgrad": config.amsgrad,
        "foreach": config.foreach,
        "fused": config.fused,
    }


def _muon(
    config: MuonConfig,
    named_parameters: Mapping[str, nn.Parameter],
    *,
    decayed: Container[str],
    matrices: Container[str],
) -> Optimizer:
    hidden = {name: value for name, value in named_parameters.items() if name in matrices and value.ndim == 2}
    others = {name: value for name, value in named_parameters.items() if name not in hidden}
    muon_groups = layout_groups(hidden.values(), name="muon", weight_decay=config.weight_decay)
    adamw_groups = parameter_groups(others, decayed=decayed, weight_decay=config.weight_decay, prefix="adamw_")
    parts: list[Optimizer] = []
    if muon_groups:
        muon = torch.optim.Muon(muon_groups, lr=config.lr, momentum=config.momentum)
        parts.append(_on_whole_tensors(muon))
    if adamw_groups:
        options = _adam_options(AdamWConfig(lr=config.adamw_lr))
        parts.append(torch.optim.AdamW(adamw_groups, **options))
    return JoinedOptimizer(parts)


def _on_whole_tensors(optimizer: Optimizer) -> Optimizer:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return WholeTensors(optimizer) if any(isinstance(value, DTensor) for value in parameters) else optimizer
