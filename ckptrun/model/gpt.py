"""A byte-level decoder-only transformer. Must not know ranks, meshes or training.

Written so that tensor parallelism can shard it by module name alone: query, key and value are Linears of their own, and
the number of heads is read from the activations, so that a rank computes the heads that it holds.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from ckptrun.config.model import GPTConfig

__all__ = ["GPT", "Attention", "Block", "FeedForward", "init_residual"]

_STD = 0.02


class Attention(nn.Module):
    """Causal self-attention, (batch, time, width) -> the same.

    Plain matrix products instead of ``scaled_dot_product_attention``: the fused kernels' backward is not deterministic
    on CUDA, and their dropout does not draw from the generator in the same way everywhere.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.head_width = config.width // config.heads
        self.query = nn.Linear(config.width, config.width)
        self.key = nn.Linear(config.width, config.width)
        self.value = nn.Linear(config.width, config.width)
        self.output = nn.Linear(config.width, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Each position attends to itself and the positions before it."""
        query, key, value = (self._heads(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-2, -1) / math.sqrt(self.head_width)
        time = x.size(1)
        future = torch.ones(time, time, dtype=torch.bool, device=x.device).triu(1)
        weights = self.dropout(scores.masked_fill(future, float("-inf")).softmax(-1))
        mixed: Tensor = self.output((weights @ value).transpose(1, 2).flatten(2))
        return mixed

    def _heads(self, x: Tensor) -> Tensor:
        """(batch, time, any number of heads * head_width) -> (batch, heads, time, head_width)."""
        return x.view(*x.shape[:-1], -1, self.head_width).transpose(1, 2)


class FeedForward(nn.Module):
    """Two Linears with GELU between them; the hidden layer is four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        out: Tensor = self.down(functional.gelu(self.up(x)))
        return out


class Block(nn.Module):
    """Attention and ``mlp``, each on a normalised copy of the residual stream."""

    def __init__(self, config: GPTConfig, mlp: nn.Module) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention = Attention(config)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = mlp
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> (batch, time, width)."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        out: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out


class GPT(nn.Module):
    """int64 tokens (batch, time) -> logits (batch, time, vocabulary).

    Draws its initial values from the default generator.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocabulary, config.width)
        self.position_embedding = nn.Embedding(config.context, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, self._build_mlp(config)) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        self.apply(_init)
        for block in self.blocks:
            init_residual(block, config.layers)
        if config.tied_embeddings:
            self.head.weight = self.token_embedding.weight

    def _build_mlp(self, config: GPTConfig) -> nn.Module:
        return FeedForward(config.width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the token after each position. ``time`` is at most ``model.context``."""
        positions = torch.arange(tokens.size(1), device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def _init(module: nn.Module) -> None:
    """Source: GPT-2."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


def init_residual(block: nn.Module, layers: int) -> None:
    """Draw the projections into the residual stream smaller, or its size would grow with depth. Source: GPT-2."""
    for name, module in block.named_modules():
        if name.endswith((".output", ".down")) and isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=_STD / math.sqrt(2 * layers))
