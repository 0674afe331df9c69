"""Models with state-dict code of their own are saved and loaded by it; torch's own hooks are not taken for such code."""

import pytest
import torch
from torch import nn

from ckptrun.parallelism.model_state import has_extra_state, model_state
from ckptrun.parallelism.own_code import load_by_own_code, own_state_code, state_by_own_code


class Counting(nn.Module):
    """A counter that only its own code saves; and a buffer that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.calls = 0
        self.register_buffer("hidden", torch.zeros(2), persistent=False)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}calls"] = torch.tensor(self.calls)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.calls = int(state_dict.pop(f"{prefix}calls"))
        super()._load_from_state_dict(state_dict, prefix, *args)


def state_of(model: nn.Module) -> dict:
    return state_by_own_code(model, model_state(model, ()))


def test_its_own_code_gives_and_takes_the_state() -> None:
    model, other = Counting(), Counting()
    model.calls = 3
    model.hidden.fill_(7)
    saved = {name: value.clone() for name, value in state_of(model).items()}
    assert sorted(saved) == ["calls", "hidden", "layer.bias", "layer.weight"]
    load_by_own_code(other, model_state(other, ()), saved)
    assert other.calls == 3
    for name, value in state_of(other).items():
        assert torch.equal(value, saved[name]), name


def with_hook(register: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    getattr(model[1], register)(lambda *_: None)
    return model


@pytest.mark.parametrize(
    "register",
    [
        "register_state_dict_pre_hook",
        "register_state_dict_post_hook",
        "register_load_state_dict_pre_hook",
        "register_load_state_dict_post_hook",
    ],
)
def test_hooks_are_code_of_the_users(register) -> None:
    (found,) = own_state_code(with_hook(register))
    assert found.startswith("1: a hook in ")


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.LSTM(2, 2), nn.MultiheadAttention(2, 1)),
        nn.LazyLinear(2),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)),
        nn.utils.spectral_norm(nn.Linear(2, 2)),
    ],
    ids=["layers", "lazy", "weight norm", "spectral norm", "old spectral norm"],
)
def test_what_torch_brings_along_is_not(model) -> None:
    assert own_state_code(model) == ()
    assert not has_extra_state(model)


def test_overrides_are_named_with_their_place() -> None:
    found = own_state_code(nn.Sequential(Counting()))
    assert found == ("0: Counting._save_to_state_dict", "0: Counting._load_from_state_dict")
