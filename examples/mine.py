"""A model, a dataset and a component of one's own; the README has the command that runs them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset


class Layer(nn.Module):
    """A residual MLP; ``up`` and ``down`` are what tensor parallelism shards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down, self.dropout = nn.Linear(8, width), nn.Linear(width, 8), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8) -> (batch, 8)."""
        return x + self.down(torch.relu(self.up(self.dropout(x))))


class Net(nn.Sequential):
    """Two such layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.layers = nn.Sequential(Layer(width), Layer(width))


class Pairs(Dataset[tuple[Tensor, Tensor]]):
    """Noisy constants and their sum; noise from the global generator depends on (seed, epoch, index) only."""

    def __len__(self) -> int:
        return 256

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.full((8,), index / 256) + 0.1 * torch.randn(8)
        return x, x.cumsum(0)


class BestLoss:
    """A component: told of each step, saved and loaded with everything else."""

    def __init__(self) -> None:
        self.loss, self.step = float("inf"), 0

    def on_step(self, *, step: int, loss: float) -> None:
        """Remember the best loss so far."""
        if loss < self.loss:
            self.loss, self.step = loss, step

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors only; what is each rank's own goes under a key such as ``rank_00003``."""
        return {"loss": self.loss, "step": self.step}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it back."""
        self.loss, self.step = state["loss"], state["step"]
