import pytest
import torch
from torch import nn

from ckptrun.config.model import Loss
from ckptrun.errors import ConfigError
from ckptrun.model import build_loss


class Fixed(nn.Module):
    """Gives back what it was built with."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, *inputs):
        return self.output


def test_cross_entropy_is_over_the_last_dim():
    logits, targets = torch.randn(2, 3, 5), torch.randint(0, 5, (2, 3))
    expected = nn.functional.cross_entropy(logits.permute(0, 2, 1), targets)
    assert torch.equal(build_loss(Loss.cross_entropy)(Fixed(logits), targets, targets), expected)


@pytest.mark.parametrize("loss", [Loss.cross_entropy, Loss.mse, Loss.model])
def test_a_loss_of_half_precision_outputs_is_in_fp32(loss):
    targets = torch.zeros(4, dtype=torch.long) if loss is Loss.cross_entropy else torch.zeros(4, 2)
    output = torch.tensor(1.0) if loss is Loss.model else torch.ones(4, 2)
    assert build_loss(loss)(Fixed(output.bfloat16()), targets, targets).dtype == torch.float32


def test_a_model_may_compute_its_own_loss():
    assert build_loss(Loss.model)(Fixed(torch.tensor(3.0)), torch.zeros(1), torch.zeros(1)).item() == 3.0


@pytest.mark.parametrize(
    ("loss", "output", "targets"),
    [
        (Loss.cross_entropy, torch.zeros(4, 2), torch.zeros(4, 2, dtype=torch.long)),
        (Loss.mse, torch.zeros(4, 2), torch.zeros(4)),
        (Loss.model, torch.zeros(4), torch.zeros(4)),
        (Loss.model, (1, 2), torch.zeros(4)),
    ],
)
def test_what_does_not_fit_is_refused_with_the_key(loss, output, targets):
    with pytest.raises(ConfigError, match=rf"model\.loss={loss}"):
        build_loss(loss)(Fixed(output), targets, targets)
