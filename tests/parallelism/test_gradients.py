"""The global norm counts each element of the whole model once, whatever holds it."""

import math

import pytest
import torch
from torch import nn

from ckptrun.parallelism.gradients import Gradients
from tests.parallelism.training import KINDS, Recipe, Run, bits, local
from tests.support.run_ranks import run_ranks

_CASES = [(kind, model) for kind in KINDS for model in ("gpt", "mlp")]


def _gradients(cases: list[tuple[str, str]]) -> dict[tuple[str, str], dict]:
    recipe = Recipe(dropout=0.0, share_batch=True, tied=True, unused=True)
    return {(kind, model): _gradients_of(Run(recipe.but(kind=kind, model=model))) for kind, model in cases}


def _gradients_of(run: Run) -> dict:
    run.backward(0)
    parameters = run.model.named_parameters
    facts = {
        "norm": run.model.global_norm().item(),
        "with": [name for name, parameter in parameters.items() if parameter.grad is not None],
        "names": list(parameters),
        "empty": any(local(parameter).numel() == 0 for name, parameter in parameters.items() if name != "never_used"),
    }
    if not run.shape.kind.is_fsdp1:
        whole = [parameter.grad for parameter in parameters.values() if parameter.grad is not None]
        doubles = [torch.frombuffer(bytearray(bits(gradient)), dtype=torch.float32).double() for gradient in whole]
        facts["expected"] = torch.cat(doubles).norm().item()
    run.model.scale_gradients(0.5)
    facts["halved"] = run.model.global_norm().item() * 2 == facts["norm"]
    return facts


@pytest.fixture(scope="module")
def gradients():
    return run_ranks(_gradients, 4, _CASES, timeout_s=240)


@pytest.mark.distributed
@pytest.mark.parametrize("case", [(kind, model) for kind, model in _CASES if "1" not in kind])
def test_norm_is_the_norm_of_the_whole_gradients(gradients, case):
    """Both are sums of squares in fp64, in another order: 1e-12. An element counted twice or not at all shows in 1e-6."""
    for rank in gradients:
        assert rank[case]["norm"] == pytest.approx(rank[case]["expected"], rel=1e-12)


@pytest.mark.distributed
@pytest.mark.parametrize("case", _CASES)
def test_norm_is_the_one_of_a_single_process_up_to_the_order_of_sums(gradients, case):
    """fp32 gradients of the same samples, summed in another order: 1e-5. A replicated parameter counted twice: 1e-2."""
    assert gradients[0][case]["norm"] == pytest.approx(gradients[0]["none", case[1]]["norm"], rel=1e-5)


@pytest.mark.distributed
@pytest.mark.parametrize("case", _CASES)
def test_norm_has_the_same_bits_on_every_rank(gradients, case):
    assert len({rank[case]["norm"].hex() for rank in gradients}) == 1


@pytest.mark.distributed
@pytest.mark.parametrize("case", _CASES)
def test_scaling_reaches_every_gradient(gradients, case):
    assert all(rank[case]["halved"] for rank in gradients)


@pytest.mark.distributed
@pytest.mark.parametrize("case", [(kind, model) for kind, model in _CASES if "1" not in kind])
def test_all_parameters_but_the_one_never_used_have_a_gradient(gradients, case):
    """FullyShardedDataParallel alone gives zeros to what is never used beside something that is."""
    for rank in gradients:
        assert set(rank[case]["with"]) == set(rank[case]["names"]) - {"never_used"}


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["fsdp", "fsdp1"])
def test_some_rank_held_an_empty_shard(gradients, kind):
    """Otherwise the tests above would not show that empty shards work."""
    assert any(rank[kind, "mlp"]["empty"] for rank in gradients)


def _held_back(kinds: tuple[str, ...]) -> dict[str, list[bytes]]:
    """The gradients that a rank has after a pass that is not the last one of its step."""
    held = {}
    for kind in kinds:
        run = Run(Recipe(kind=kind))
        with run.model.accumulating(last=False):
            run.loss(run.model.module, *run.batch(0)).backward()
        parameters = run.model.named_parameters.values()
        held[kind] = [bits(local(parameter.grad)) for parameter in parameters if parameter.grad is not None]
    return held


@pytest.mark.distributed
def test_gradients_are_not_reduced_before_the_last_pass():
    """DDP and FSDP1 then hold each rank's own gradients, FSDP2 shows none."""
    one, other = run_ranks(_held_back, 2, ("ddp", "fsdp", "fsdp1"))
    assert one["fsdp"] == other["fsdp"] == []
    assert len(one["ddp"]) == len(other["ddp"]) > 0
    assert one["ddp"] != other["ddp"]
    assert one["fsdp1"] != other["fsdp1"]


def test_norm_without_any_gradient_is_zero():
    parameters = {"weight": nn.Parameter(torch.ones(3))}
    gradients = Gradients(parameters, axes={"weight": frozenset()}, mesh=None)
    assert gradients.global_norm().item() == 0.0


def test_norm_is_taken_in_double_precision():
    parameters = {"weight": nn.Parameter(torch.zeros(2))}
    parameters["weight"].grad = torch.tensor([1e30, 1e30])
    norm = Gradients(parameters, axes={"weight": frozenset()}, mesh=None).global_norm()
    assert norm.dtype == torch.float64
    assert math.isfinite(norm.item())
