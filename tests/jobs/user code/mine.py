"""What a user brings along: lies outside the package, in a folder with a space in its name."""

import torch
from torch import nn
from torch.utils.data import Dataset


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.dropout(x))))


class Net(nn.Module):
    """Two layers with dropout and a head; the last parameter is never used."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(width), Layer(width)])
        self.head = nn.Linear(8, 8)
        self.never = nn.Parameter(torch.ones(3))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class OtherHead(Net):
    """The same body under a head of another name."""

    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        del self.head
        self.new_head = nn.Linear(8, 8)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.new_head(x)


class Pairs(Dataset):
    def __init__(self, samples: int = 64) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int):
        # Noise from the global generator, as augmentations draw it.
        return torch.full((8,), float(index)) / self.samples + 0.1 * torch.randn(8), torch.ones(8)


class Lion(torch.optim.Optimizer):
    """An optimizer with a moment of its own name and a plain counter in its state."""

    def __init__(self, params, lr=1e-3, beta=0.9) -> None:
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_of_mine"] = torch.zeros_like(p)
                    state["calls"] = 0
                state["calls"] += 1
                state["momentum_of_mine"].lerp_(p.grad, 1 - group["beta"])
                p.add_(state["momentum_of_mine"].sign(), alpha=-group["lr"])


class Halving:
    """A schedule that is no torch class."""

    def __init__(self, optimizer, every: int = 2) -> None:
        self.optimizer, self.every, self.steps = optimizer, every, 0

    def step(self) -> None:
        self.steps += 1
        if self.steps % self.every == 0:
            for group in self.optimizer.param_groups:
                group["lr"] *= 0.5

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state) -> None:
        self.steps = state["steps"]


class Memory:
    """A component whose leaves come and go: the losses seen, as tensors in a list, and bytes."""

    def __init__(self, note: str = "") -> None:
        self.losses, self.note, self.by_step = [], note.encode(), {}

    def on_step(self, *, step: int, loss: float) -> None:
        self.losses.append(torch.tensor(loss, dtype=torch.float64))
        self.by_step[step] = [loss, step]

    def state_dict(self):
        return {"losses": list(self.losses), "note": self.note, "by_step": dict(self.by_step)}

    def load_state_dict(self, state) -> None:
        self.losses, self.note, self.by_step = list(state["losses"]), state["note"], dict(state["by_step"])


class Forgetful(Memory):
    """Saves everything and takes nothing back: the bug that ckptrun is there for."""

    def load_state_dict(self, state) -> None:
        pass


class Unsavable:
    def state_dict(self):
        return {"socket": object()}

    def load_state_dict(self, state) -> None:
        pass


class FailsOnRank1(Net):
    def __init__(self, width: int = 8) -> None:
        super().__init__(width)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        if self.calls == 2 and torch.distributed.get_rank() == 1:
            raise ValueError("the user's own mistake")
        return super().forward(x)


class CountsInOwnCode(nn.Module):
    """Its counter is saved and loaded by state-dict code of its own, as torch allows."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(8, 8), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) / (1 + 0.1 * self.calls)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}calls"] = torch.tensor(self.calls)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.calls = int(state_dict.pop(f"{prefix}calls"))
        super()._load_from_state_dict(state_dict, prefix, *args)


class RoundsInOwnCode(nn.Module):
    """Its state-dict code rounds weights on their way back."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x):
        return self.layer(x)

    def load_state_dict(self, state_dict, strict=True, assign=False):
        rounded = {name: value.bfloat16().float() for name, value in state_dict.items()}
        return super().load_state_dict(rounded, strict=strict, assign=assign)
