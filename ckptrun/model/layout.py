"""What a mesh may do with each model: which modules are blocks, and how tensor parallelism shards each module.

Patterns are module names whose parts may be wildcards: ``blocks.*`` is every block, not what is inside of them.
Must not know ranks or meshes; whoever lays a model out gets the layout as an argument.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from ckptrun.config.model import (
    CNNConfig,
    CustomModelConfig,
    GPTConfig,
    MLPConfig,
    ModelConfig,
    MoEConfig,
    TensorStyle,
)
from ckptrun.errors import InternalError

__all__ = ["ModelLayout", "layout_of"]

_ATTENTION = {
    "blocks.*.attention.query": TensorStyle.colwise,
    "blocks.*.attention.key": TensorStyle.colwise,
    "blocks.*.attention.value": TensorStyle.colwise,
    "blocks.*.attention.output": TensorStyle.rowwise,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayout:
    """Patterns of module names, for one model."""

    blocks: tuple[str, ...]
    """What FSDP shards as one unit, what is compiled on its own, and what activation checkpointing recomputes."""
    tensor_plan: Mapping[str, TensorStyle]
    """What tensor parallelism shards; modules that no pattern matches are the same on all tensor-parallel ranks.
    Embeddings and the output layer are left alone, so that logits are plain tensors and tied weights stay tied."""


def layout_of(config: ModelConfig) -> ModelLayout:
    """The layout of a built-in model, or the one that the config of a custom model gives."""
    match config:
        case CustomModelConfig(blocks=blocks, tensor_plan=plan):
            return _layout(tuple(blocks), dict(plan))
        case MoEConfig():
            up, down = "blocks.*.mlp.experts.*.up", "blocks.*.mlp.experts.*.down"
            return _layout(("blocks.*",), {**_ATTENTION, up: TensorStyle.colwise, down: TensorStyle.rowwise})
        case GPTConfig():
            up, down = "blocks.*.mlp.up", "blocks.*.mlp.down"
            return _layout(("blocks.*",), {**_ATTENTION, up: TensorStyle.colwise, down: TensorStyle.rowwise})
        case MLPConfig(features=features):
            # Pairs of layers; what is left over stays whole.
            paired = (len(features) - 1) // 2 * 2
            styles = (TensorStyle.colwise, TensorStyle.rowwise)
            return _layout(("layers.*",), {f"layers.{index}": styles[index % 2] for index in range(paired)})
        case CNNConfig():
            return _layout(("blocks.*",), {})
        case _:
            raise InternalError(f"No layout is known for {type(config).__name__}.")


def _layout(blocks: tuple[str, ...], plan: dict[str, TensorStyle]) -> ModelLayout:
    return ModelLayout(blocks=blocks, tensor_plan=MappingProxyType(plan))
