"""What a run cannot take is told in one message; outputs of several parts work."""

from collections import OrderedDict
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from ckptrun.config.model import Loss
from ckptrun.errors import ConfigError
from ckptrun.model import build_loss, require_sizes, sparse_weights
from ckptrun.trainer import _on_device, _take_step


@dataclass
class Output:
    logits: Tensor | None = None
    loss: Tensor | None = None


class Returns(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, *_: Tensor) -> object:
        return self.output


@pytest.mark.parametrize(
    "lazy", [nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.LazyConv2d(2, 3)], ids=lambda m: type(m).__name__
)
def test_a_module_without_sizes_is_named(lazy: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(lazy))
    with pytest.raises(ConfigError, match=rf"'1\.0' \({type(lazy).__name__}\)"):
        require_sizes(model, target="job.py:Lazy")


def test_a_lazy_module_that_has_seen_a_batch_is_like_any_other() -> None:
    model = nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d())
    model(torch.ones(2, 4))
    require_sizes(model, target="job.py:Lazy")


def test_embeddings_with_sparse_gradients_are_found() -> None:
    frozen = nn.Embedding(4, 2, sparse=True).requires_grad_(False)
    model = nn.Sequential(
        nn.Embedding(4, 2), nn.Embedding(4, 2, sparse=True), nn.EmbeddingBag(4, 2, sparse=True), frozen
    )
    assert sparse_weights(model) == ["1.weight", "2.weight"]
    assert sparse_weights(nn.Embedding(4, 2, sparse=True)) == ["weight"]


@pytest.mark.parametrize("make", [Output, OrderedDict], ids=["object", "dict"])
def test_logits_and_loss_are_taken_from_an_output_of_several_parts(make: type) -> None:
    logits, target = torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 3.0]])
    assert build_loss(Loss.mse)(Returns(make(logits=logits)), logits, target).item() == 0.5
    assert build_loss(Loss.model)(Returns(make(loss=torch.tensor(7.0))), logits, target).item() == 7.0
    expected = nn.functional.cross_entropy(logits, torch.tensor([1])).item()
    assert build_loss(Loss.cross_entropy)(Returns(make(logits=logits)), logits, torch.tensor([1])).item() == expected


@pytest.mark.parametrize(
    ("loss", "output", "message"),
    [
        (Loss.mse, {"hidden": torch.ones(1)}, r"mse needs .*'logits', got dict"),
        (Loss.cross_entropy, (torch.ones(1),), r"needs .*'logits', got tuple"),
        (Loss.model, Output(loss=None), r"0-dim tensor.*'loss', got Output"),
        (Loss.model, {"loss": 1.0}, r"got dict whose 'loss' is a float"),
    ],
)
def test_another_output_is_refused_with_what_is_needed(loss: Loss, output: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_loss(loss)(Returns(output), torch.ones(1), torch.ones(1))


def test_a_batch_that_is_no_tensor_is_refused_with_what_it_is() -> None:
    with pytest.raises(ConfigError, match=r"the input of a batch is a dict of \['ids', 'mask'\]"):
        _on_device("input", {"mask": torch.ones(1), "ids": torch.ones(1)}, torch.device("cpu"))
    with pytest.raises(ConfigError, match="the target of a batch is a list"):
        _on_device("target", ["a"], torch.device("cpu"))


@pytest.mark.parametrize(("optimizer", "sparse"), [(torch.optim.AdamW, True), (torch.optim.SparseAdam, False)])
def test_an_optimizer_that_cannot_use_a_gradient_is_named(optimizer: type[torch.optim.Optimizer], sparse: bool) -> None:
    embedding = nn.Embedding(4, 2, sparse=sparse)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match=rf"{optimizer.__name__} cannot use .* (sparse|dense) gradients"):
        _take_step(optimizer(embedding.parameters(), lr=0.1))
