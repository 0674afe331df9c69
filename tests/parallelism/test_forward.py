"""Changing how forward runs must not change what it computes, nor names, nor random streams."""

import pytest
import torch
from torch import nn

from ckptrun.parallelism.forward import autocast_forward, recompute_in_backward
from tests.parallelism.training import Recipe, Run, bits


@pytest.mark.parametrize("model", ["gpt", "moe", "cnn", "mlp"])
def test_recomputation_gives_the_same_bits(model):
    """Dropout and router noise draw the same numbers the second time, BatchNorm counts each batch once."""
    plain, recomputed = Run(Recipe(model=model)), Run(Recipe(model=model, activation_checkpointing=True))
    expected = plain.steps(0, 2), plain.held()
    torch.manual_seed(1000)
    assert (recomputed.steps(0, 2), recomputed.held()) == expected


def test_recomputation_keeps_no_activations_of_the_block():
    kept = []
    block = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 4))
    recompute_in_backward(block, compiled=False)
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.shape) or tensor, lambda kept: kept
    ):
        block(torch.ones(8, 4)).sum().backward()
    assert torch.Size([8, 64]) not in kept


def test_buffers_are_the_live_ones_again_after_backward():
    block = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    live = block[1].running_mean
    recompute_in_backward(block, compiled=False)
    block(torch.rand(4, 3)).sum().backward()
    assert block[1].running_mean is live


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_half_precision_with_whole_parameters(dtype):
    model = nn.Linear(4, 4)
    before = bits(model.weight)
    autocast_forward(model, device_type="cpu", dtype=dtype)
    output = model(torch.ones(2, 4))
    assert output.dtype == dtype
    output.sum().backward()
    assert model.weight.grad.dtype == torch.float32
    assert bits(model.weight) == before


def test_names_stay():
    run = Run(Recipe(activation_checkpointing=True, precision="bf16"))
    assert list(run.model.module.state_dict()) == list(run.initial)
