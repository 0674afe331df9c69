"""Fingerprints of weights and moments tell a change of a single bit, and nothing else."""

import pytest
import torch
from torch import nn

from ckptrun.evidence.trained import fingerprints


@pytest.fixture
def trained() -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    kinds = [
        torch.randn(3).bfloat16(),
        torch.zeros(0),
        torch.tensor(1.0),
        torch.randn(4, 3).t(),
        torch.randn(2).cfloat(),
    ]
    parameters = [nn.Parameter(value) for value in kinds]
    optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return parameters, optimizer


def test_a_step_with_rate_zero_changes_moments_and_no_weights(trained) -> None:
    parameters, optimizer = trained
    before = fingerprints(parameters, optimizer)
    optimizer.step()
    after = fingerprints(parameters, optimizer)
    assert after["weights"] == before["weights"]
    assert after["moments"] != before["moments"]


@pytest.mark.parametrize("number", [0, 2, 3, 4])
def test_one_bit_of_one_weight_is_told(trained, number) -> None:
    parameters, optimizer = trained
    before = fingerprints(parameters, optimizer)
    with torch.no_grad():
        # Past the version counter, as a raw pointer would.
        raw = parameters[number].data.reshape(-1) if number != 3 else parameters[number].data.t().reshape(-1)
        raw.view(torch.uint8)[0] ^= 1
    after = fingerprints(parameters, optimizer)
    assert after["weights"] != before["weights"]
    assert after["moments"] == before["moments"]


def test_a_flipped_sign_of_zero_is_another_bit() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter])
    before = fingerprints([parameter], optimizer)
    parameter.data.neg_()
    assert fingerprints([parameter], optimizer) != before


def test_what_nobody_can_read_is_not_told() -> None:
    parameter = nn.Parameter(torch.zeros(2, device="meta"))
    assert fingerprints([parameter], torch.optim.SGD([parameter]))["weights"] is None
