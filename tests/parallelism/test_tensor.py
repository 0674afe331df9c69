"""A user's own model under a tensor plan: it computes what it computed before, or is refused with the reason."""

import re

import pytest
import torch
from torch import nn
from torch.distributed.tensor import DTensor

from ckptrun.config.model import TensorStyle
from ckptrun.config.parallelism import MeshShape, ParallelismKind
from ckptrun.errors import ConfigError
from ckptrun.model import ModelLayout
from ckptrun.parallelism import ParallelModel, Settings, build_mesh, parallelize
from ckptrun.parallelism.tensor import apply_tensor_plan
from tests.support.run_ranks import run_ranks

COLWISE, ROWWISE, SEQUENCE = TensorStyle.colwise, TensorStyle.rowwise, TensorStyle.sequence


class Gated(nn.Module):
    """A user's block: gate and up side by side, a norm, dropout."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.gate = nn.Linear(width, 12)
        self.up = nn.Linear(width, 12)
        self.down = nn.Linear(12, width)
        self.dropout = nn.Dropout(0.0)

    def forward(self, x):
        y = self.norm(x)
        return x + self.dropout(self.down(torch.sigmoid(self.gate(y)) * self.up(y)))


class Users(nn.Module):
    """(batch, time) -> (batch, time, 12), with tied embeddings."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.layers = nn.ModuleList(Gated(8) for _ in range(2))
        self.alone = nn.Linear(8, 8)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.alone(x))


_PAIRS = {"layers.*.gate": COLWISE, "layers.*.up": COLWISE, "layers.*.down": ROWWISE}
_PLANS = {
    "pairs": _PAIRS,
    "colwise alone": {"alone": COLWISE},
    "rowwise alone": {"alone": ROWWISE},
    "tied vocabulary": {"embedding": ROWWISE, "head": COLWISE},
    "norm and dropout over the sequence": {**_PAIRS, "layers.*.norm": SEQUENCE, "layers.*.dropout": SEQUENCE},
    "everything": {
        **_PAIRS,
        "layers.*.norm": SEQUENCE,
        "alone": COLWISE,
        "embedding": ROWWISE,
        "head": COLWISE,
    },
}
_KINDS = ("tp", "fsdp_tp", "fsdp1_tp")
_SHAPES = {
    "tp": MeshShape(kind=ParallelismKind.tp, replicate=1, shard=1, tensor=4),
    "fsdp_tp": MeshShape(kind=ParallelismKind.fsdp_tp, replicate=1, shard=2, tensor=2),
    "fsdp1_tp": MeshShape(kind=ParallelismKind.fsdp1_tp, replicate=1, shard=2, tensor=2),
}


def _built(kind: str, plan: dict[str, TensorStyle]) -> ParallelModel:
    torch.manual_seed(0)
    settings = Settings(kind=ParallelismKind(kind), device=torch.device("cpu"))
    layout = ModelLayout(blocks=("layers.*",), tensor_plan=plan)
    model = Users()
    model.layers[1].norm.weight.requires_grad_(False)
    return parallelize(model, layout, mesh=build_mesh(_SHAPES[kind], "cpu"), settings=settings)


def _computed(cases: list[tuple[str, str]]) -> dict:
    return {(kind, plan): _computed_by(_built(kind, _PLANS[plan])) for kind, plan in cases}


def _computed_by(model: ParallelModel) -> dict:
    tokens = torch.arange(8).reshape(2, 4)
    for last in (False, True):
        with model.accumulating(last=last):
            output = model.module(tokens)
            nn.functional.cross_entropy(output.flatten(0, 1), tokens.flatten() + 1).backward()
    return {
        "plain": not isinstance(output, DTensor),
        "output": output.detach().tolist(),
        "norm": model.global_norm().item(),
        "frozen": [name for name, parameter in model.named_parameters.items() if not parameter.requires_grad],
        "alike": _gradients_are_laid_out_like_parameters(model),
        "tied": "head.weight" not in model.named_parameters,
    }


def _gradients_are_laid_out_like_parameters(model: ParallelModel) -> bool:
    trained = [parameter for parameter in model.named_parameters.values() if isinstance(parameter, DTensor)]
    return all(p.grad.placements == p.placements for p in trained if p.grad is not None)


# What ties the vocabulary is refused for FullyShardedDataParallel, see test_checks.py.
_CASES = [
    (kind, plan)
    for kind in _KINDS
    for plan in _PLANS
    if kind != "fsdp1_tp" or plan not in ("tied vocabulary", "everything")
]


@pytest.fixture(scope="module")
def computed():
    return run_ranks(_computed, 4, _CASES)


@pytest.fixture(scope="module")
def expected():
    torch.manual_seed(0)
    model = Users()
    model.layers[1].norm.weight.requires_grad_(False)
    settings = Settings(kind=ParallelismKind.none, device=torch.device("cpu"))
    return _computed_by(parallelize(model, ModelLayout(blocks=(), tensor_plan={}), mesh=None, settings=settings))


@pytest.mark.distributed
@pytest.mark.parametrize("case", _CASES)
def test_output_is_whole_and_plain_and_the_same_as_without(computed, expected, case):
    """Partial sums of 12 features or less in fp32 are added in another order: 1e-5."""
    for rank in computed:
        assert rank[case]["plain"]
        assert torch.tensor(rank[case]["output"]) == pytest.approx(torch.tensor(expected["output"]), rel=1e-5, abs=1e-6)


@pytest.mark.distributed
@pytest.mark.parametrize("case", _CASES)
def test_gradients_are_summed_over_the_ranks_that_split_a_module(computed, expected, case):
    """In another order: 1e-5. A gradient that is not summed, or summed twice, is off by 1e-2 and more."""
    for rank in computed:
        assert rank[case]["norm"] == pytest.approx(expected["norm"], rel=1e-5)
        assert rank[case]["alike"]


@pytest.mark.distributed
@pytest.mark.parametrize("case", _CASES)
def test_frozen_stays_frozen_and_tied_stays_tied(computed, case):
    assert computed[0][case]["frozen"] == ["layers.1.norm.weight"]
    assert computed[0][case]["tied"]


def _refusals(plans: dict[str, dict]) -> dict[str, str]:
    mesh = build_mesh(MeshShape(kind=ParallelismKind.tp, replicate=1, shard=1, tensor=2), "cpu")
    return {name: _refusal(plan, mesh) for name, plan in plans.items()}


def _refusal(plan: dict[str, TensorStyle], mesh) -> str:
    model = Users()
    model.odd = nn.Linear(8, 9)
    model.convolution = nn.Conv2d(1, 2, 3)
    try:
        apply_tensor_plan(model, plan, mesh=mesh, ties=(("embedding.weight", "head.weight"),))
        model(torch.zeros(2, 3, dtype=torch.long))
    except ConfigError as error:
        return str(error)
    return "accepted"


_REFUSED = {
    "no match": ({"layer.*.up": COLWISE}, r"model\.tensor_plan: no module matches the pattern 'layer\.\*\.up'"),
    "two styles": ({"alone": COLWISE, "al*": ROWWISE}, "wants module 'alone' both colwise and rowwise"),
    "uneven": ({"odd": COLWISE}, r"'odd' has 9 features .* not a multiple of parallelism\.tensor \(2\)"),
    "convolution": ({"convolution": ROWWISE}, "'convolution' is a Conv2d"),
    "half of a tie": ({"head": COLWISE}, r"'embedding\.weight' and 'head\.weight' are one tied parameter"),
    "uneven sequence": ({"layers.*.norm": SEQUENCE}, r"its input is \(2, 3, 8\)"),
}


@pytest.fixture(scope="module")
def refusals():
    return run_ranks(_refusals, 2, {name: plan for name, (plan, _) in _REFUSED.items()})


@pytest.mark.distributed
@pytest.mark.parametrize("case", _REFUSED)
def test_a_plan_that_cannot_work_is_refused_with_the_reason(refusals, case):
    for said in refusals:
        assert re.search(_REFUSED[case][1], said[case])


class InPlace(nn.Module):
    """Changes what a sharded unit returned."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.second = nn.Linear(8, 2)

    def forward(self, x):
        y = self.first(x)
        y *= 2
        return self.second(y)


def _in_place(kind: str) -> float:
    torch.manual_seed(0)
    plan = {"first": COLWISE, "second": ROWWISE} if kind != "none" else {}
    layout = ModelLayout(blocks=("first", "second"), tensor_plan=plan)
    settings = Settings(kind=ParallelismKind(kind), device=torch.device("cpu"))
    mesh = None if kind == "none" else build_mesh(_SHAPES[kind], "cpu")
    model = parallelize(InPlace(), layout, mesh=mesh, settings=settings)
    model.module(torch.ones(3, 4)).square().sum().backward()
    return model.global_norm().item()


@pytest.mark.distributed
def test_a_model_may_change_in_place_what_a_sharded_tensor_parallel_unit_returns():
    """fully_shard alone would lose the unit's parameters in backward, because the unit returns a view.

    Sums over ranks come in another order: 1e-5. Lost parameters have no gradient at all.
    """
    assert run_ranks(_in_place, 4, "fsdp_tp")[0] == pytest.approx(_in_place("none"), rel=1e-5)
