"""Linear layers with ReLU between them. Must not know ranks, meshes or training."""

from itertools import pairwise

from torch import Tensor, nn

from ckptrun.config.model import MLPConfig

__all__ = ["MLP"]


class MLP(nn.Module):
    """(..., features[0]) -> (..., features[-1])."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(low, high) for low, high in pairwise(config.features))
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """No ReLU after the last layer."""
        for index, layer in enumerate(self.layers):
            x = layer(self.activation(x) if index else x)
        return x
