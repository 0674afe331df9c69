"""``convert --to torch`` gives ``load_state_dict`` of torch's own models and optimizers what they want."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

from ckptrun.optimizer.state import OptimizerState
from tests.support.bits import bits
from tests.tools.run_tool import Ended, run_tool
from tests.tools.saved import save

Make = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, betas=(0.8, 0.95), amsgrad=True),
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True),
    "plain sgd": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "tensor rate": lambda groups: torch.optim.Adam(groups, lr=torch.tensor(0.01)),
}


def model() -> nn.Sequential:
    """More than ten layers, so that the order of names is not that of the model; one never gets a gradient."""
    torch.manual_seed(0)
    made = nn.Sequential(*[nn.Linear(3, 3) for _ in range(12)])
    made[4].weight.requires_grad_(False)
    return made


def groups(of: nn.Module, *, named: bool, count: int = 2) -> list[dict[str, Any]]:
    if count == 1:
        return [{"params": list(of.parameters())}]
    parts = [[p for p in of.parameters() if (p.dim() > 1) == is_matrix] for is_matrix in (False, True)]
    # The order of groups is not that of their names.
    names = ("z_vectors", "a_matrices")
    return [
        {"params": part, "weight_decay": 0.1 * index, **({"name": names[index]} if named else {})}
        for index, part in enumerate(parts)
    ]


def train(of: nn.Module, optimizer: torch.optim.Optimizer, steps: int, *, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        of(torch.randn(4, 3, generator=generator)).square().mean().backward()
        optimizer.step()


def state_bits(of: nn.Module, optimizer: torch.optim.Optimizer) -> list[Any]:
    found: list[Any] = [bits(tensor) for tensor in of.state_dict().values()]
    for parameter in of.parameters():
        values = optimizer.state.get(parameter, {})
        found.append({key: bits(v) if isinstance(v, torch.Tensor) else v for key, v in values.items()})
    return found


def convert(folder: Path, *options: str) -> Ended:
    ended = run_tool("convert", folder, folder.parent / "state.pt", "--to", "torch", "--overwrite", *options)
    assert ended.code == 0, ended
    return ended


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_training_goes_on_in_plain_torch_bit_for_bit(kind: str, count: int, tmp_path: Path) -> None:
    make = OPTIMIZERS[kind]
    live = model()
    optimizer = make(groups(live, named=True, count=count))
    train(live, optimizer, 3, seed=1)
    named = dict(live.named_parameters())
    run = {"parameters": list(named), "parameter_groups": ["z_vectors", "a_matrices"] if count == 2 else ["group_0"]}
    state = {"model": live.state_dict(), "optimizer": OptimizerState(optimizer, named).state_dict()}
    convert(save(tmp_path / "saved", state, **run))
    saved = torch.load(tmp_path / "state.pt")
    other = model()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    again = make(groups(other, named=False, count=count))
    other.load_state_dict(saved["model"])
    again.load_state_dict(saved["optimizer"])
    assert state_bits(other, again) == state_bits(live, optimizer)
    for one, two in ((live, optimizer), (other, again)):
        train(one, two, 3, seed=2)
    assert state_bits(other, again) == state_bits(live, optimizer)


def test_one_component_alone_is_what_is_loaded(tmp_path: Path) -> None:
    live = model()
    optimizer = OPTIMIZERS["adamw"](groups(live, named=False))
    train(live, optimizer, 2, seed=1)
    named = dict(live.named_parameters())
    run = {"parameters": list(named), "parameter_groups": ["group_0", "group_1"]}
    state = {"model": live.state_dict(), "optimizer": OptimizerState(optimizer, named).state_dict()}
    folder = save(tmp_path / "saved", state, **run)
    other = model()
    again = OPTIMIZERS["adamw"](groups(other, named=False))
    convert(folder, "--only", "model")
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    convert(folder, "--only", "optimizer")
    again.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert state_bits(other, again) == state_bits(live, optimizer)


def test_without_an_order_the_names_tell_it(tmp_path: Path) -> None:
    live = model()
    optimizer = OPTIMIZERS["adamw"](groups(live, named=True))
    train(live, optimizer, 2, seed=1)
    named = dict(live.named_parameters())
    state = {"model": live.state_dict(), "optimizer": OptimizerState(optimizer, named).state_dict()}
    ended = convert(save(tmp_path / "saved", state))
    assert "numbered by name" in ended.errors
    saved = torch.load(tmp_path / "state.pt")
    other = model()
    there = dict(other.named_parameters())
    parts = [{"params": [there[name] for name in group["param_names"]]} for group in saved["optimizer"]["param_groups"]]
    again = OPTIMIZERS["adamw"](parts)
    again.load_state_dict(saved["optimizer"])
    other.load_state_dict(saved["model"])
    assert state_bits(other, again) == state_bits(live, optimizer)
    assert [group["name"] for group in again.param_groups] == ["a_matrices", "z_vectors"]


def test_numbers_survive_the_way_through_other_formats(tmp_path: Path) -> None:
    live = model()
    optimizer = OPTIMIZERS["sgd"](groups(live, named=False))
    train(live, optimizer, 2, seed=1)
    torch.save({"optimizer": optimizer.state_dict()}, tmp_path / "first.pt")
    assert run_tool("convert", tmp_path / "first.pt", tmp_path / "saved", "--to", "ckptrun").code == 0
    convert(tmp_path / "saved")
    again = OPTIMIZERS["sgd"](groups(live, named=False))
    again.load_state_dict(torch.load(tmp_path / "state.pt")["optimizer"])
    assert state_bits(live, again) == state_bits(live, optimizer)


def test_optimizers_that_torch_saved_by_name_are_numbered(tmp_path: Path) -> None:
    live = model()
    live[4].weight.requires_grad_(True)
    optimizer = OPTIMIZERS["adamw"]([{"params": list(live.parameters())}])
    train(live, optimizer, 2, seed=1)
    dcp.save({"optim": get_optimizer_state_dict(live, optimizer)}, checkpoint_id=tmp_path / "saved", no_dist=True)
    convert(tmp_path / "saved")
    again = OPTIMIZERS["adamw"]([{"params": list(live.parameters())}])
    again.load_state_dict(torch.load(tmp_path / "state.pt")["optim"])
    assert state_bits(live, again) == state_bits(live, optimizer)


def test_an_optimizer_that_has_not_stepped_is_whole(tmp_path: Path) -> None:
    live = model()
    optimizer = OPTIMIZERS["adamw"](groups(live, named=True))
    state = {"optimizer": OptimizerState(optimizer, dict(live.named_parameters())).state_dict()}
    convert(save(tmp_path / "saved", state, parameters=[name for name, _ in live.named_parameters()]))
    saved = torch.load(tmp_path / "state.pt")["optimizer"]
    assert saved["state"] == {}
    OPTIMIZERS["adamw"](groups(live, named=False)[::-1]).load_state_dict(saved)
