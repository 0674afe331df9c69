"""Code of users' own with something that no state has, one class for each place in a step where it can sit."""

import random
import threading

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

_COUNTED: dict[str, int] = {}
MODELS: list[nn.Module] = []
OPTIMIZERS: list[torch.optim.Optimizer] = []


def new_process() -> None:
    """What a new process forgets beside the objects."""
    for kept in (_COUNTED, MODELS, OPTIMIZERS):
        kept.clear()


class Pairs(Dataset):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.linspace(-1, 1, 8) * (index + 1) / 64
        return x, x.flip(0)


class OwnNoise(Pairs):
    """Augments with a generator of its own."""

    def __init__(self) -> None:
        self.noise = torch.Generator().manual_seed(1)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return x + torch.randn(8, generator=self.noise), y


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self.calls = 0
        MODELS.append(self)

    def begin(self, x: Tensor) -> None:
        """Once per forward."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.begin(x)
        return self.last(torch.relu(self.first(x)))


class LossOfItsOwn(Net):
    """Weighs its loss by an average of earlier ones, in an attribute."""

    average = 1.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss = (super().forward(x) - y).square().mean()
        self.average = 0.9 * self.average + 0.1 * float(loss.detach())
        return loss / self.average


class DrawsInLoss(Net):
    """From its third call on it draws, and does nothing with what it drew."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss = (super().forward(x) - y).square().mean()
        if self.calls > 2:
            random.random()
        return loss


class SecondForward(Net):
    """From its third call on it looks at itself once more, with dropout."""

    def begin(self, x: Tensor) -> None:
        if self.calls > 2:
            with torch.no_grad():
                nn.functional.dropout(self.first(x), 0.5)


class ThreadDecays(Net):
    """A thread changes a bias that has been used, from the third call on."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.calls > 2:
            thread = threading.Thread(target=self.decay)
            thread.start()
            thread.join()
        return y

    def decay(self) -> None:
        with torch.no_grad():
            self.last.bias.mul_(0.99)


class ThreadDraws(ThreadDecays):
    """A thread draws."""

    def decay(self) -> None:
        torch.rand(1)


class HookDoubles(Net):
    """A hook on a weight changes its gradient, from the third backward on."""

    def __init__(self) -> None:
        super().__init__()
        self.backwards = 0
        self.last.weight.register_hook(self.double)

    def double(self, gradient: Tensor) -> Tensor:
        self.backwards += 1
        return gradient * (2 if self.backwards > 2 else 1)


class GradientsInAttribute(Net):
    """Adds half of the last gradient to each one; it stands in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.held = torch.zeros(8)
        self.last.bias.register_hook(self.add)

    def add(self, gradient: Tensor) -> Tensor:
        self.held = gradient + 0.5 * self.held
        return self.held


class Gathers(torch.optim.SGD):
    """Steps with an average of all gradients so far, in an attribute."""

    def __init__(self, params, lr) -> None:
        super().__init__(params, lr=lr)
        self.held: dict[Tensor, Tensor] = {}

    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.held[p] = p.grad = self.held.get(p, 0) + p.grad
        return super().step()


class KeepsGradients(torch.optim.SGD):
    """Halves gradients where it should set them to zero."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.5)


class InBackward(torch.optim.SGD):
    """Updates in backward, with a rate that falls with the updates of the process."""

    def __init__(self, params, lr) -> None:
        super().__init__(params, lr=lr)
        self.updates = 0
        for group in self.param_groups:
            for p in group["params"]:
                p.register_post_accumulate_grad_hook(self.update)

    @torch.no_grad()
    def update(self, p: Tensor) -> None:
        self.updates += 1
        p.sub_(0.01 / self.updates * p.grad)

    def step(self, closure=None):
        pass


class GlobalCounter:
    """A schedule that goes by a global of its module."""

    def __init__(self, optimizer) -> None:
        OPTIMIZERS.append(optimizer)
        self.optimizer = optimizer

    def step(self) -> None:
        _COUNTED["steps"] = _COUNTED.get("steps", 0) + 1
        for group in self.optimizer.param_groups:
            group["lr"] = 0.01 / _COUNTED["steps"]

    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None:
        pass


class Callback:
    """A component without a state; acts in the third step of a process."""

    def __init__(self) -> None:
        self.steps = 0

    def on_step(self, *, step, loss) -> None:
        self.steps += 1
        if self.steps >= 3:
            self.act()

    def act(self) -> None:
        """Once per step."""

    def state_dict(self):
        return {}

    def load_state_dict(self, state) -> None:
        pass


class Draws(Callback):
    def act(self) -> None:
        torch.rand(1)


class Evaluates(Callback):
    """A forward of its own, which draws for dropout."""

    def act(self) -> None:
        with torch.no_grad():
            nn.functional.dropout(MODELS[-1](torch.ones(1, 8)), 0.5)


class ShakesWeights(Callback):
    def act(self) -> None:
        with torch.no_grad():
            MODELS[-1].first.weight.add_(0.01)


class ChangesRate(Callback):
    def act(self) -> None:
        for group in OPTIMIZERS[-1].param_groups:
            group["lr"] *= 0.5


class LeavesGradients(Callback):
    def act(self) -> None:
        MODELS[-1].first.bias.grad = torch.ones(8)
