"""``diff`` says first what each component comes to, how large differences are in value too, and the worst on top."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ckptrun.elements.apart import Apart, apart
from tests.tools.run_tool import run_tool
from tests.tools.saved import save


def of(values: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (of([1.0, 4.0]), of([1.5, 4.0]), Apart(0.5, 1 / 3)),
        (of([100.0, 1.0]), of([101.0, 2.0]), Apart(1.0, 0.5)),
        (of([0.0]), of([-0.0]), Apart(0.0, 0.0)),
        (of([0.0]), of([2.0]), Apart(2.0, 1.0)),
        (of([math.inf, 1.0]), of([1.0, 1.0]), Apart(math.inf, math.inf)),
        (of([math.nan, 1.0]), of([1.0, 3.0]), Apart(2.0, 2 / 3)),
        (of([math.nan]), of([1.0]), None),
        (of([3, 5], torch.int32), of([3, 7], torch.int32), Apart(2.0, 2 / 7)),
        (of([1.0], torch.bfloat16), of([1.5], torch.bfloat16), Apart(0.5, 1 / 3)),
        (torch.tensor([3 + 4j]), torch.tensor([0j]), Apart(5.0, 1.0)),
        (torch.tensor([True]), torch.tensor([False]), Apart(1.0, 1.0)),
    ],
)
def test_how_far_numbers_are_apart(one: Tensor, other: Tensor, expected: Apart | None) -> None:
    assert apart(one, other) == expected


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    a = {
        "model": {"small": torch.ones(1000), "large": torch.ones(4), "same": torch.ones(3), "nan": torch.ones(2)},
        "optimizer": {"lr": 0.5, "gone": 1},
        "extra": {},
    }
    b = {
        "model": {
            "small": torch.ones(1000).index_fill(0, torch.tensor([7]), 1.001),
            "large": torch.tensor([1.0, 3.0, 1.0, 2.0]),
            "same": torch.ones(3),
            "nan": torch.tensor([1.0, math.nan]),
        },
        "optimizer": {"lr": 0.25},
        "extra": {},
    }
    torch.save(b, tmp_path / "b.pt")
    return save(tmp_path / "a", a), tmp_path / "b.pt"


def test_components_come_first_and_the_worst_leaves_on_top(two: tuple[Path, Path]) -> None:
    ended = run_tool("diff", *two)
    assert ended.code == 3
    lines = ended.output.splitlines()
    at = {word: next(i for i, line in enumerate(lines) if line.split()[:1] == [word]) for word in ("component", "leaf")}
    assert at["component"] < at["leaf"]
    assert [line.split()[0] for line in lines[at["component"] + 1 : at["component"] + 3]] == ["model", "optimizer"]
    leaves = [line.split()[0] for line in lines[at["leaf"] + 1 : at["leaf"] + 5]]
    assert leaves == ["model.nan", "model.large", "optimizer.lr", "model.small"]
    assert "0.667" in lines[at["leaf"] + 2]


def test_the_document_has_the_same_numbers(two: tuple[Path, Path]) -> None:
    found = run_tool("diff", *two, "--json").document
    model, optimizer = found["components"][:2]
    assert (model["component"], model["equal"], model["differing"], model["differing_elements"]) == ("model", 1, 3, 4)
    assert (model["largest_absolute"], model["largest_relative"], model["nans"]) == (2.0, 2 / 3, 1)
    assert (optimizer["differing"], optimizer["only_in_a"], optimizer["largest_absolute"]) == (1, 1, 0.25)
    large = next(item for item in found["differing"] if item["leaf"] == "model.large")
    assert (large["elements"]["largest_absolute"], large["elements"]["differing"]) == (2.0, 2)


def test_an_empty_dict_that_the_other_format_cannot_hold_is_no_difference(tmp_path: Path) -> None:
    state = {"model": {"w": torch.ones(2)}, "layouts": {}}
    torch.save(state, tmp_path / "b.pt")
    ended = run_tool("diff", save(tmp_path / "a", state), tmp_path / "b.pt")
    assert ended.code == 0, ended
    for name in ("empty", "other"):
        torch.save({}, tmp_path / f"{name}.pt")
    assert run_tool("diff", tmp_path / "empty.pt", tmp_path / "other.pt").code == 0
