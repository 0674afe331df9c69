"""Group ``model``: what is trained."""

from dataclasses import dataclass, field
from enum import StrEnum

from ckptrun.config.custom import Custom
from ckptrun.config.ranges import at_least, between, named_pattern_list
from ckptrun.errors import ConfigError

__all__ = [
    "CNNConfig",
    "CustomModelConfig",
    "GPTConfig",
    "Loss",
    "MLPConfig",
    "MoEConfig",
    "ModelConfig",
    "TensorStyle",
]


class Loss(StrEnum):
    """What is minimised, given the model's output and the batch's target."""

    cross_entropy = "cross_entropy"
    """Output (..., classes) against int64 targets (...)."""
    mse = "mse"
    """Mean squared error; output and target of one shape."""
    model = "model"
    """``model(input, target)`` returns the loss itself, a 0-dim tensor."""


class TensorStyle(StrEnum):
    """How tensor parallelism shards one module."""

    colwise = "colwise"
    """Linear: output features are sharded; embedding: columns."""
    rowwise = "rowwise"
    """Linear: input features are sharded, outputs are summed; embedding: rows."""
    sequence = "sequence"
    """Norms and dropout: activations are sharded over dim 1, parameters are replicated."""


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """What every model has."""

    loss: Loss = Loss.cross_entropy
    """What is minimised."""


@dataclass(kw_only=True, slots=True)
class GPTConfig(ModelConfig):
    """A byte-level decoder-only transformer."""

    layers: int = 2
    """Number of transformer blocks."""
    heads: int = 4
    """Attention heads per block; a multiple of ``parallelism.tensor``."""
    width: int = 64
    """Size of the residual stream; a multiple of ``heads``."""
    context: int = 64
    """Longest sequence, in tokens; also the length of the training sequences."""
    vocabulary: int = 256
    """Number of distinct tokens; 256 for bytes."""
    dropout: float = 0.1
    """Share of activations dropped, so that RNG matters; 0 switches it off."""
    tied_embeddings: bool = True
    """Whether the output layer shares its weight with the token embedding."""

    def __post_init__(self) -> None:
        for key in ("layers", "heads", "width", "context", "vocabulary"):
            at_least(f"model.{key}", getattr(self, key), 1)
        between("model.dropout", self.dropout, 0.0, 1.0)
        if self.width % self.heads:
            raise ConfigError(f"model.width ({self.width}) must be a multiple of model.heads ({self.heads}).")


@dataclass(kw_only=True, slots=True)
class MoEConfig(GPTConfig):
    """The transformer with a routed mixture of experts in place of each MLP."""

    experts: int = 4
    """Number of experts per block."""
    experts_per_token: int = 2
    """How many experts see each token; at most ``experts``."""
    router_noise: float = 1.0
    """Standard deviation of the noise added to the router's logits while training; 0 switches it off."""

    def __post_init__(self) -> None:
        # No zero-argument super(): slots=True makes a new class, and the old one is what super() would look for.
        GPTConfig.__post_init__(self)
        at_least("model.experts", self.experts, 1)
        at_least("model.experts_per_token", self.experts_per_token, 1)
        at_least("model.router_noise", self.router_noise, 0)
        if self.experts_per_token > self.experts:
            raise ConfigError(
                f"model.experts_per_token ({self.experts_per_token}) must be at most model.experts ({self.experts})."
            )


@dataclass(kw_only=True, slots=True)
class MLPConfig(ModelConfig):
    """Linear layers with ReLU between them."""

    loss: Loss = Loss.mse
    """What is minimised."""
    features: list[int] = field(default_factory=lambda: [8, 16, 32, 64, 8])
    """Sizes of input, hidden layers and output."""

    def __post_init__(self) -> None:
        if len(self.features) < 2:
            raise ConfigError(f"model.features needs an input and an output size, got {list(self.features)}.")
        for size in self.features:
            at_least("model.features", size, 1)


@dataclass(kw_only=True, slots=True)
class CNNConfig(ModelConfig):
    """Convolutions with BatchNorm: buffers that change in forward."""

    channels: list[int] = field(default_factory=lambda: [8, 16, 32])
    """Output channels of each convolution; each halves height and width."""
    classes: int = 4
    """Number of classes; ``data=shapes`` draws 4."""
    dropout: float = 0.1
    """Share of features dropped before the classifier."""

    def __post_init__(self) -> None:
        if not self.channels:
            raise ConfigError("model.channels needs at least one convolution, got [].")
        for size in self.channels:
            at_least("model.channels", size, 1)
        at_least("model.classes", self.classes, 2)
        between("model.dropout", self.dropout, 0.0, 1.0)


@dataclass(kw_only=True, slots=True)
class CustomModelConfig(ModelConfig, Custom):
    """A ``torch.nn.Module`` of the user's own."""

    context: int = 64
    """Length of the training sequences for ``data=python_source`` and ``data=text``."""
    blocks: list[str] = field(default_factory=list)
    """Patterns of module names that FSDP shards one by one, e.g. ``['layers.*']``; the rest is one unit."""
    tensor_plan: dict[str, TensorStyle] = field(default_factory=dict)
    """Pattern of module names -> style, e.g. ``{'layers.*.up': colwise, 'layers.*.down': rowwise}``."""

    def __post_init__(self) -> None:
        at_least("model.context", self.context, 1)
        named_pattern_list("model.blocks", self.blocks)
        named_pattern_list("model.tensor_plan", self.tensor_plan)
