"""Samples that are computed from their index and a seed, so that nothing is read. Must not know ranks or epochs."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ckptrun.data.order import derived_seed
from ckptrun.errors import ConfigError, InternalError

__all__ = ["RandomTensors", "Shapes"]


def _generator(kind: str, seed: int, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed(kind, seed, index))


class RandomTensors(Dataset[tuple[Tensor, Tensor]]):
    """Uniform tensors in [0, 1).

    Shapes:
        sample: input (inputs,) fp32, target (targets,) fp32.
    """

    deterministic_samples = True

    def __init__(self, *, samples: int, inputs: int, targets: int, seed: int) -> None:
        self._samples, self._inputs, self._targets, self._seed = samples, inputs, targets, seed
        self.fingerprint = f"random/{samples}/{inputs}/{targets}/{seed}"

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = _generator("random", self._seed, index)
        return torch.rand(self._inputs, generator=generator), torch.rand(self._targets, generator=generator)


class Shapes(Dataset[tuple[Tensor, Tensor]]):
    """Noisy images of a disc, a square, a cross or a ring, at a random place and size; the class is the shape.

    Shapes:
        sample: input (channels, size, size) fp32, target () int64 in [0, 4).

    Raises:
        ConfigError: ``channels`` is neither 1 nor 3.
    """

    deterministic_samples = True
    NAMES = ("disc", "square", "cross", "ring")
    _NOISE = 0.3

    def __init__(self, *, samples: int, size: int, seed: int, channels: int = 1) -> None:
        if channels not in (1, 3):
            raise ConfigError(f"data=shapes draws images with 1 or 3 channels, not {channels}.")
        self._samples, self._size, self._seed, self._channels = samples, size, seed, channels
        self.fingerprint = f"shapes/{samples}/{size}/{channels}/{seed}"

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        generator = _generator("shapes", self._seed, index)
        target = torch.randint(len(self.NAMES), (), generator=generator)
        radius, row, column = torch.rand(3, generator=generator).tolist()
        color = 0.5 + torch.rand(self._channels, 1, 1, generator=generator)
        noise = torch.randn(self._channels, self._size, self._size, generator=generator)
        mask = self._mask(int(target), radius, row, column)
        return mask.to(torch.float32) * color + self._NOISE * noise, target

    def _mask(self, shape: int, radius: float, row: float, column: float) -> Tensor:
        """(size, size) bool: where the shape is. The last three are in [0, 1) and say how big and where."""
        half = self._size * (0.2 + 0.15 * radius)
        places = torch.arange(self._size, dtype=torch.float32)
        slack = self._size - 1 - 2 * half
        down = (places - half - slack * row).abs()[:, None]
        right = (places - half - slack * column).abs()[None, :]
        distance = (down.square() + right.square()).sqrt()
        match self.NAMES[shape]:
            case "disc":
                return distance <= half
            case "square":
                return torch.maximum(down, right) <= 0.9 * half
            case "cross":
                return (torch.minimum(down, right) <= 0.25 * half) & (torch.maximum(down, right) <= half)
            case "ring":
                return (distance <= half) & (distance >= 0.6 * half)
            case other:
                raise InternalError(f"No shape is called {other}.")
