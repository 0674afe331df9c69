import argparse
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from ckptrun.config.model import CNNConfig, GPTConfig, MLPConfig, MoEConfig
from ckptrun.model import CNN, GPT, MLP, MoE
from ckptrun.model.moe import RoutedExperts


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize(("build", "config"), [(GPT, GPTConfig()), (MoE, MoEConfig())])
def test_a_fresh_transformer_gives_every_byte_about_the_same_probability(build, config):
    tokens = torch.randint(0, 256, (4, 65))
    logits = build(config)(tokens[:, :-1])
    assert logits.shape == (4, 64, 256)
    loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    assert abs(loss.item() - math.log(256)) < 0.2


@pytest.mark.parametrize(("build", "config"), [(GPT, GPTConfig()), (MoE, MoEConfig())])
def test_a_position_does_not_see_what_comes_after_it(build, config):
    model = build(config).eval()
    tokens = torch.randint(0, 256, (1, 16))
    changed = tokens.clone()
    changed[0, 10] += 1
    before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[:10], after[:10])
    assert not torch.equal(before[10:], after[10:])


@pytest.mark.parametrize(
    ("build", "config"), [pytest.param(GPT, GPTConfig()), pytest.param(MoE, MoEConfig(), marks=pytest.mark.slow)]
)
def test_default_sizes_learn_python_source_within_sixty_steps(build, config):
    text = torch.tensor(list(Path(argparse.__file__).read_bytes()))
    model = build(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    losses = []
    for _ in range(60):
        starts = torch.randint(0, len(text) - 65, (16,)).tolist()
        batch = torch.stack([text[start : start + 65] for start in starts])
        loss = functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[0] > 5
    assert max(losses[-5:]) < 3.5


def test_dropout_draws_from_the_default_generator():
    model, tokens = GPT(GPTConfig()), torch.zeros(1, 8, dtype=torch.long)
    state = torch.get_rng_state()
    first, second = model(tokens), model(tokens)
    torch.set_rng_state(state)
    assert torch.equal(first, model(tokens))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_output_layer_share_a_weight_if_asked(tied):
    model = GPT(GPTConfig(tied_embeddings=tied))
    assert (model.head.weight is model.token_embedding.weight) == tied


def _experts(**changes) -> RoutedExperts:
    return RoutedExperts(MoEConfig(width=8, heads=2, **changes))


def test_every_expert_has_a_gradient_though_no_token_chose_it():
    layer = _experts(experts=4, experts_per_token=1)
    layer(torch.zeros(1, 1, 8)).sum().backward()
    assert all(parameter.grad is not None for parameter in layer.parameters())


def test_an_expert_that_is_not_chosen_does_not_count():
    layer = _experts(experts=4, experts_per_token=2).eval()
    x = torch.randn(5, 8)
    chosen = layer.router(x).topk(2).indices
    expected = layer(x)
    for token in range(5):
        changed = _experts(experts=4, experts_per_token=2).eval()
        changed.load_state_dict(layer.state_dict())
        for index in set(range(4)) - set(chosen[token].tolist()):
            nn.init.constant_(changed.experts[index].down.bias, 100.0)
        assert torch.equal(changed(x)[token], expected[token])


def test_router_noise_draws_from_the_default_generator_while_training_only():
    layer, x = _experts(), torch.randn(64, 8)
    state = torch.get_rng_state()
    first = layer(x)
    assert not torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, layer(x))
    layer.eval()
    state = torch.get_rng_state()
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(state, torch.get_rng_state())


def test_mlp_has_relu_between_its_layers_and_not_after_them():
    model = MLP(MLPConfig())
    assert model(torch.rand(3, 8)).shape == (3, 8)
    assert (model(torch.randn(64, 8)) < 0).any()
    assert len(model.layers) == 4


def test_cnn_takes_images_of_any_size_and_changes_its_averages():
    model = CNN(CNNConfig())
    before = model.blocks[0].norm.running_mean.clone()
    assert model(torch.rand(2, 1, 16, 16)).shape == (2, 4)
    assert model(torch.rand(2, 1, 9, 13)).shape == (2, 4)
    assert not torch.equal(before, model.blocks[0].norm.running_mean)
