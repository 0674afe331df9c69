"""Sparse gradients of embeddings: norm, clipping and unscaling are those of the dense gradient, bit for bit."""

import pytest
import torch
from torch import nn

from ckptrun.config.precision import PrecisionConfig, PrecisionKind
from ckptrun.evidence.content_digest import content_digest
from ckptrun.parallelism.gradients import Gradients
from ckptrun.precision import LossScaler


def weight_with(gradient: torch.Tensor) -> nn.Parameter:
    weight = nn.Parameter(torch.zeros(4, 2))
    weight.grad = gradient
    return weight


def twice_in_one_row() -> torch.Tensor:
    """Rows 1, 3 and 1 again, as a batch with a token in it twice leaves them."""
    values = torch.tensor([[3.0, 0.0], [0.0, 12.0], [0.0, 4.0]])
    return torch.sparse_coo_tensor(torch.tensor([[1, 3, 1]]), values, (4, 2), check_invariants=True)


def test_entries_of_one_row_count_as_their_sum() -> None:
    weight = weight_with(twice_in_one_row())
    gradients = Gradients({"w": weight}, axes={"w": frozenset()}, mesh=None)
    # Rows (3, 4) and (0, 12).
    assert gradients.global_norm().item() == 13.0
    more = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.tensor([[-3.0, 1.0]]), (4, 2), check_invariants=True)
    weight.grad = twice_in_one_row() + more
    # Rows (0, 5) and (0, 12) now.
    assert gradients.global_norm().item() == 13.0
    gradients.scale(torch.tensor(0.5, dtype=torch.float64))
    assert weight.grad.is_sparse
    assert weight.grad.to_dense().tolist() == [[0.0, 0.0], [0.0, 2.5], [0.0, 0.0], [0.0, 6.0]]
    assert content_digest(weight.grad) == content_digest(weight.grad.to_dense())


@pytest.mark.parametrize("overflows", [False, True])
def test_the_scaler_looks_at_the_sum_of_a_row(overflows: bool) -> None:
    large = torch.full((2, 2), 60000.0 if overflows else 2.0, dtype=torch.float16)
    weight = nn.Parameter(torch.zeros(4, 2, dtype=torch.float16))
    weight.grad = torch.sparse_coo_tensor(torch.tensor([[1, 1]]), large, (4, 2), check_invariants=True)
    scaler = LossScaler(PrecisionConfig(kind=PrecisionKind.fp16, initial_scale=2.0), device=torch.device("cpu"))
    assert scaler.unscale_([weight]) is not overflows
    if not overflows:
        assert weight.grad.to_dense()[1].tolist() == [2.0, 2.0]
