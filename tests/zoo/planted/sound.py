"""Parts of jobs that are unusual and right: nothing may be found in them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tests.zoo.planted.seam import rank

__all__ = ["CountsBuffers", "OddParameters", "OfEachRank", "OwnGeneratorSaved", "Remembers", "SeveralOutputs"]


class OfEachRank:
    """What each rank has seen for itself, under a key of its own."""

    def __init__(self) -> None:
        self.seen = torch.zeros(3, dtype=torch.float64)

    def on_step(self, *, step: int, loss: float) -> None:
        self.seen += torch.tensor([rank(), step, loss], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {f"rank_{rank():05d}": {"seen": self.seen, "note": [rank(), None, "é", b"\x00"]}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.seen.copy_(state[f"rank_{rank():05d}"]["seen"])


class CountsBuffers(nn.Module):
    """Buffers of all kinds decide what comes next: one that is not persistent, an integer, a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(8), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("is_warm", torch.zeros((), dtype=torch.bool))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.is_warm |= self.calls > 2
        self.mean.lerp_(x.detach().mean(dim=0), 0.1)
        return self.layer(x - self.mean) * (1.0 + 0.1 * self.is_warm)


class OwnGeneratorSaved(nn.Module):
    """A generator of its own, and it is in the extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.generator = nn.Linear(8, 8), torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x * (torch.rand(x.shape, generator=self.generator) > 0.2))

    def get_extra_state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class OddParameters(nn.Module):
    """Parameters in fp64, complex, without an element, without a dim, and one that never changes."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.doubled = nn.Parameter(torch.ones(8, dtype=torch.float64))
        self.complex = nn.Parameter(torch.ones(8, dtype=torch.complex64))
        self.empty = nn.Parameter(torch.empty(0, 3))
        self.scalar = nn.Parameter(torch.ones(()))
        self.fixed = nn.Parameter(torch.ones(2), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.layer(x) * self.doubled).float() * self.scalar + self.empty.sum()
        return x + (x * self.complex).real * self.fixed[0]


class Remembers(Dataset[Any]):
    """Its noise depends on what it has handed out, which is in its state."""

    def __init__(self) -> None:
        self.last = 0.0

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self.last = 0.5 * self.last + 0.01 * index
        x = torch.linspace(-1, 1, 8) + self.last + 0.1 * torch.randn(8)
        return x, x.flip(0)

    def state_dict(self) -> dict[str, Any]:
        return {"last": self.last}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.last = state["last"]


class SeveralOutputs(nn.Module):
    """Modules that return tuples and dicts, one that is called twice, one that is never called, a scalar parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.pair, self.twice, self.never = _Pair(), nn.Linear(8, 8), nn.Linear(2, 2)
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        one, rest = self.pair(x)
        return self.twice(self.twice(one)) * self.scale + rest["other"]


class _Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        one, other = self.layer(x).chunk(2, dim=-1)
        return one, {"other": other}
