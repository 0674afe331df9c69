"""Convolutions with BatchNorm: a model whose buffers change in forward. Must not know ranks, meshes or training."""

from itertools import pairwise

from torch import Tensor, nn

from ckptrun.config.model import CNNConfig

__all__ = ["CNN", "ConvBlock"]


class ConvBlock(nn.Module):
    """Convolution, BatchNorm, ReLU; halves height and width (rounded up)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        # BatchNorm subtracts the mean, so a bias here would have no effect.
        self.convolution = nn.Conv2d(inputs, outputs, kernel_size=3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(outputs)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, height, width) -> (batch, outputs, height / 2, width / 2)."""
        out: Tensor = self.activation(self.norm(self.convolution(x)))
        return out


class CNN(nn.Module):
    """Images (batch, image_channels, height, width) -> logits (batch, classes)."""

    def __init__(self, config: CNNConfig, *, image_channels: int = 1) -> None:
        super().__init__()
        channels = [image_channels, *config.channels]
        self.blocks = nn.ModuleList(ConvBlock(low, high) for low, high in pairwise(channels))
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(channels[-1], config.classes)

    def forward(self, images: Tensor) -> Tensor:
        """Mean over positions before the classifier, so any image size will do."""
        x = images
        for block in self.blocks:
            x = block(x)
        # A plain mean: the backward of adaptive pooling has no deterministic kernel on CUDA.
        logits: Tensor = self.classifier(self.dropout(x.mean((-2, -1))))
        return logits
