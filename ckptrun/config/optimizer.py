"""Group ``optimizer``: what turns gradients into updates."""

from dataclasses import dataclass

from ckptrun.config.custom import Custom
from ckptrun.config.ranges import at_least, between
from ckptrun.errors import ConfigError

__all__ = [
    "AdafactorConfig",
    "AdamConfig",
    "AdamWConfig",
    "CustomOptimizerConfig",
    "MuonConfig",
    "OptimizerConfig",
    "SGDConfig",
]


@dataclass(kw_only=True, slots=True)
class OptimizerConfig:
    """What every optimizer has."""

    lr: float = 1e-3
    """Peak learning rate; the schedule scales it."""
    weight_decay: float = 0.0
    """Weight decay of matrices and convolutions; norms, biases and other 1-dim parameters get none."""

    def __post_init__(self) -> None:
        at_least("optimizer.lr", self.lr, 0)
        at_least("optimizer.weight_decay", self.weight_decay, 0)


@dataclass(kw_only=True, slots=True)
class _Implementation(OptimizerConfig):
    foreach: bool | None = None
    """Use the multi-tensor implementation; unset: torch decides."""
    fused: bool | None = None
    """Use the fused implementation; unset: torch decides."""

    def __post_init__(self) -> None:
        OptimizerConfig.__post_init__(self)
        if self.foreach and self.fused:
            raise ConfigError("optimizer.foreach=true and optimizer.fused=true exclude each other; choose one.")


@dataclass(kw_only=True, slots=True)
class SGDConfig(_Implementation):
    """``torch.optim.SGD``."""

    momentum: float = 0.9
    """Share of the last update that is kept; 0 keeps no state."""
    nesterov: bool = False
    """Nesterov's form of momentum."""

    def __post_init__(self) -> None:
        _Implementation.__post_init__(self)
        between("optimizer.momentum", self.momentum, 0.0, 1.0)
        if self.nesterov and self.momentum == 0:
            raise ConfigError("optimizer.nesterov=true needs optimizer.momentum above 0.")


@dataclass(kw_only=True, slots=True)
class AdamConfig(_Implementation):
    """``torch.optim.Adam``."""

    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the denominator."""
    amsgrad: bool = False
    """Keep the largest second moment."""

    def __post_init__(self) -> None:
        _Implementation.__post_init__(self)
        between("optimizer.beta1", self.beta1, 0.0, 1.0)
        between("optimizer.beta2", self.beta2, 0.0, 1.0)
        at_least("optimizer.eps", self.eps, 0)


@dataclass(kw_only=True, slots=True)
class AdamWConfig(AdamConfig):
    """``torch.optim.AdamW``: Adam with decoupled weight decay."""

    lr: float = 3e-3
    """Peak learning rate; the schedule scales it."""
    weight_decay: float = 0.1
    """Weight decay of matrices and convolutions; norms, biases and other 1-dim parameters get none."""


@dataclass(kw_only=True, slots=True)
class AdafactorConfig(OptimizerConfig):
    """``torch.optim.Adafactor``: second moments as a row and a column."""

    lr: float = 1e-2
    """Upper bound of the learning rate."""
    foreach: bool | None = None
    """Use the multi-tensor implementation; unset: torch decides."""


@dataclass(kw_only=True, slots=True)
class MuonConfig(OptimizerConfig):
    """``torch.optim.Muon`` for the matrices of hidden layers, AdamW for everything else."""

    lr: float = 2e-2
    """Peak learning rate of Muon."""
    weight_decay: float = 0.1
    """Weight decay of matrices, in both optimizers."""
    momentum: float = 0.95
    """Muon's momentum."""
    adamw_lr: float = 1e-3
    """Peak learning rate of AdamW (embeddings, output layer, norms, biases)."""

    def __post_init__(self) -> None:
        OptimizerConfig.__post_init__(self)
        between("optimizer.momentum", self.momentum, 0.0, 1.0)
        at_least("optimizer.adamw_lr", self.adamw_lr, 0)


@dataclass(kw_only=True, slots=True)
class CustomOptimizerConfig(OptimizerConfig, Custom):
    """A ``torch.optim.Optimizer`` of the user's own, called as ``target(param_groups, lr=..., **args)``."""
