"""The transformer of ``gpt`` with routed experts in place of each MLP. Must not know ranks, meshes or training."""

import torch
from torch import Tensor, nn

from ckptrun.config.model import GPTConfig, MoEConfig
from ckptrun.errors import InternalError
from ckptrun.model.gpt import GPT, FeedForward

__all__ = ["MoE", "RoutedExperts"]


class RoutedExperts(nn.Module):
    """Sends each token to its ``experts_per_token`` best experts and adds up what they say, weighted by the router.

    Every expert computes every token, and the router's weight is zero where it was not chosen. This saves no work over
    a dense model; in return shapes do not depend on values (compile, tensor parallelism), nothing is scattered and
    added (which has no deterministic kernel everywhere), and every expert has a gradient in every step, as FSDP needs
    it: ranks must agree on which parameters have one.
    """

    def __init__(self, config: MoEConfig) -> None:
        super().__init__()
        self.router = nn.Linear(config.width, config.experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(config.width) for _ in range(config.experts))
        self.experts_per_token = config.experts_per_token
        self.noise = config.router_noise

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        logits = self.router(x)
        if self.training and self.noise:
            logits = logits + self.noise * torch.randn_like(logits)
        best, chosen = logits.topk(self.experts_per_token, dim=-1)
        weights = torch.zeros_like(logits).scatter(-1, chosen, best.softmax(-1).to(logits.dtype))
        outputs = [weights[..., index, None] * expert(x) for index, expert in enumerate(self.experts)]
        return torch.stack(outputs).sum(0)


class MoE(GPT):
    """int64 tokens (batch, time) -> logits (batch, time, vocabulary)."""

    def _build_mlp(self, config: GPTConfig) -> nn.Module:
        if not isinstance(config, MoEConfig):
            raise InternalError(f"MoE needs a MoEConfig, got a {type(config).__name__}.")
        return RoutedExperts(config)
