"""A resumed run compiles anew, in new processes; it must still compute the same bits."""

import io
from typing import Any

import pytest
import torch
from torch import nn

from ckptrun.parallelism.forward import compile_forward
from tests.parallelism.training import Recipe, Run
from tests.support.run_ranks import run_ranks

_RECIPES = [Recipe(kind="ddp", model="mlp", compile=True, accumulate=2)]


def _trained(recipe: Recipe) -> dict[str, Any]:
    """Two steps, what is then saved, and two steps more."""
    run = _run(recipe)
    run.steps(0, 2)
    buffer = io.BytesIO()
    torch.save(run.saved(), buffer)
    return {"saved": buffer.getvalue(), "steps": run.steps(2, 4), "held": run.held()}


def _resumed(recipe: Recipe, saved: list[bytes]) -> dict[str, Any]:
    run = _run(recipe)
    run.load(torch.load(io.BytesIO(saved[torch.distributed.get_rank()])))
    return {"steps": run.steps(2, 4), "held": run.held()}


def _run(recipe: Recipe) -> Run:
    import torch._inductor.config

    torch._inductor.config.compile_threads = 1
    return Run(recipe)


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("recipe", _RECIPES, ids=lambda recipe: recipe.kind)
def test_compiled_ddp_on_three_ranks_resumes_in_new_processes(recipe):
    trained = run_ranks(_trained, 3, recipe)
    resumed = run_ranks(_resumed, 3, recipe, [rank["saved"] for rank in trained])
    for before, after in zip(trained, resumed, strict=True):
        assert after == {"steps": before["steps"], "held": before["held"]}


def test_every_batch_size_is_compiled_for_itself(monkeypatch):
    """With torch's default the second size compiles for all sizes, so kernels would depend on the sizes seen before."""
    compile_with = torch.compile
    monkeypatch.setattr(torch, "compile", lambda forward, **options: compile_with(forward, backend="eager", **options))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    module = nn.Sequential(nn.Linear(6, 4), nn.ReLU())
    compile_forward(module)
    for size in (2, 5, 7, 5):
        module(torch.ones(size, 6))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 3
