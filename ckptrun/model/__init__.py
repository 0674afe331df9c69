"""Group ``model``: what is trained. Must not know ranks, meshes, optimizers or files."""

from ckptrun.model.cnn import CNN
from ckptrun.model.gpt import GPT
from ckptrun.model.layout import ModelLayout, layout_of
from ckptrun.model.limits import require_sizes, sparse_weights
from ckptrun.model.loss import LossFunction, build_loss
from ckptrun.model.mlp import MLP
from ckptrun.model.moe import MoE

__all__ = [
    "CNN",
    "GPT",
    "MLP",
    "LossFunction",
    "MoE",
    "ModelLayout",
    "build_loss",
    "layout_of",
    "require_sizes",
    "sparse_weights",
]
