"""Every kind trains the same model: same start, same first loss, and the loss that one process would have."""

import pytest
import torch
import torch.distributed as dist

from tests.parallelism.training import DATA_KINDS, KINDS, TENSOR_KINDS, Recipe, Run, bits
from tests.support.run_ranks import run_ranks

pytestmark = pytest.mark.distributed

_STEPS = 6


def _facts(kinds: tuple[str, ...]) -> dict[str, dict]:
    return {kind: _facts_of(kind) for kind in kinds}


def _facts_of(kind: str) -> dict:
    run = Run(Recipe(kind=kind, tied=True))
    state = run.model.state_dict()
    changed = [name for name, tensor in run.initial.items() if bits(state[name]) != bits(tensor)]
    facts = {
        "changed": changed,
        "not_named": sorted(set(run.initial) ^ set(state)),
        "parameters": list(run.model.named_parameters),
        "decayed": sorted(run.model.decayed),
        "first_loss": run.step(0)[0],
    }
    alone = Run(Recipe(tied=True))
    alone.data_rank = run.data_rank
    torch.manual_seed(1000 + run.data_rank)
    facts["first_loss_alone"] = alone.step(0)[0]
    return facts | {"losses": _mean_losses(kind)}


def _mean_losses(kind: str) -> list[float]:
    """Mean loss over all samples, again and again the same ones; nothing is dropped."""
    run = Run(Recipe(kind=kind, dropout=0.0, share_batch=True))
    losses = []
    for _ in range(_STEPS):
        loss = torch.tensor(float.fromhex(run.step(0)[0]))
        if dist.is_initialized():
            dist.all_reduce(loss)
            loss /= dist.get_world_size()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def facts():
    return run_ranks(_facts, 4, KINDS, timeout_s=240)


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_start_with_the_values_they_were_built_with(facts, kind):
    assert [rank[kind]["changed"] for rank in facts] == [[]] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_leaves_are_named_as_in_the_users_model(facts, kind):
    assert [rank[kind]["not_named"] for rank in facts] == [[]] * 4


@pytest.mark.parametrize("kind", KINDS)
def test_a_tied_parameter_is_handed_out_once_under_its_first_name(facts, kind):
    assert "token_embedding.weight" in facts[0][kind]["parameters"]
    assert "head.weight" not in facts[0][kind]["parameters"]


@pytest.mark.parametrize("kind", KINDS)
def test_matrices_are_decayed_and_norms_and_biases_are_not(facts, kind):
    decayed, parameters = facts[0][kind]["decayed"], facts[0][kind]["parameters"]
    expected = [name for name in parameters if name.endswith(".weight") and "norm" not in name]
    assert decayed == sorted(expected)


@pytest.mark.parametrize("kind", DATA_KINDS)
def test_first_loss_of_each_rank_has_the_bits_of_one_process_alone(facts, kind):
    for rank in facts:
        assert rank[kind]["first_loss"] == rank[kind]["first_loss_alone"]


@pytest.mark.parametrize("kind", TENSOR_KINDS)
def test_tensor_parallel_ranks_see_one_loss(facts, kind):
    """Four ranks: pairs (or all) share their samples, and with them the bits of the loss."""
    losses = [rank[kind]["first_loss"] for rank in facts]
    assert len(set(losses)) == (1 if kind == "tp" else 2)


@pytest.mark.parametrize("kind", KINDS)
def test_loss_follows_the_one_of_a_single_process(facts, kind):
    """Not bit for bit: every kind adds up samples, features or both in another order, in fp32 (relative 6e-8 per sum).

    AdamW turns such a difference in a gradient near zero into a whole step of lr=0.01, hence 1e-3 and not 1e-6; a wrong
    reduction (a sum for a mean, one rank's gradients alone) is off by more than 1e-2 after six steps.
    """
    expected = facts[0]["none"]["losses"]
    for rank in facts:
        assert rank[kind]["losses"] == pytest.approx(expected, rel=1e-3)
    assert expected[-1] < expected[0]
