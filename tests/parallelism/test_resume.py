"""A fresh model that loads the state of a run goes on bit for bit like the run itself, under every kind."""

import pytest

from tests.parallelism.training import DATA_KINDS, KINDS, Recipe, resumed_differences
from tests.support.run_ranks import run_ranks

pytestmark = pytest.mark.distributed

# Everything at once that has ever been left out of a state, or made ranks disagree on what has a gradient.
_AWKWARD = Recipe(
    tied=True,
    accumulate=2,
    unused=True,
    freeze=("position_embedding", "blocks.0.mlp.up", "blocks.1.attention_norm"),
)
_ON_FOUR = {kind: _AWKWARD.but(kind=kind) for kind in KINDS}
_BATCHNORM = {
    (kind, precision): Recipe(kind=kind, model="cnn", accumulate=2, precision=precision)
    for kind in DATA_KINDS
    for precision in ("fp32", "bf16")
}
_QUICK = {key: recipe for key, recipe in _BATCHNORM.items() if key[1] == "fp32"}
_SLOW = {key: recipe for key, recipe in _BATCHNORM.items() if key not in _QUICK}
# Three ranks divide nothing evenly, and from three on the order of a sum counts.
_ON_THREE = {
    (kind, change): _AWKWARD.but(kind=kind) if change == "awkward" else Recipe(kind=kind, **{change: True})
    for kind in ("ddp", "fsdp", "fsdp1")
    for change in ("awkward", "activation_checkpointing")
}


def _differences(recipes: list[Recipe]) -> list[list[str]]:
    return [resumed_differences(recipe) for recipe in recipes]


def _on_ranks(recipes: dict, nproc: int) -> dict:
    """For each recipe what differed on each rank. One start of the ranks for all recipes."""
    by_rank = run_ranks(_differences, nproc, list(recipes.values()), timeout_s=240)
    return {key: [results[index] for results in by_rank] for index, key in enumerate(recipes)}


@pytest.fixture(scope="module")
def on_four():
    return _on_ranks({**_ON_FOUR, **_QUICK}, 4)


@pytest.fixture(scope="module")
def on_three():
    return _on_ranks(_ON_THREE, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_tied_frozen_and_unused_parameters_with_accumulation_resume(on_four, kind):
    assert on_four[kind] == [[]] * 4


@pytest.mark.parametrize(("kind", "precision"), _QUICK)
def test_batchnorm_resumes(on_four, kind, precision):
    assert on_four[kind, precision] == [[]] * 4


@pytest.mark.slow
def test_batchnorm_resumes_in_bf16():
    assert _on_ranks(_SLOW, 4) == {key: [[]] * 4 for key in _SLOW}


@pytest.mark.parametrize(("kind", "change"), _ON_THREE)
def test_three_ranks_resume(on_three, kind, change):
    """DDP must not rebuild its buckets after the first step, as it does unless it looks for unused parameters."""
    assert on_three[kind, change] == [[]] * 3


@pytest.mark.slow
def test_hybrid_sharding_with_tensor_parallelism_resumes_on_eight_ranks():
    recipe = _AWKWARD.but(kind="hsdp_tp")
    assert _on_ranks({"hsdp_tp": recipe}, 8)["hsdp_tp"] == [[]] * 8
