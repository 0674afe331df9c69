"""Bugs that are in no list: classes of a user's own that keep what they compute with where no state dict sees it."""

import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from ckptrun.trainer import Trainer
from tests.zoo.planted.seam import Bug, local, training_of, wrap

_SEEN: dict[str, float] = {}
_TRAINERS: list[Any] = []


class _Net(nn.Module):
    """Two layers; what makes them wrong is in ``between``."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def between(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(torch.relu(self.first(x))))


class OwnDropout(nn.Module):
    """Drops with a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand(x.shape, generator=self.generator) > 0.2)


class OwnGenerator(_Net):
    """A module draws its dropout from a ``torch.Generator`` that it keeps to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.noise = OwnDropout()

    def between(self, x: Tensor) -> Tensor:
        return self.noise(x)


class WarmingScale(nn.Module):
    """Scales by how often it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * min(1.0, self.calls / 10)


class PythonCounter(_Net):
    """A module's scale grows with the number of its calls, which stands in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = WarmingScale()

    def between(self, x: Tensor) -> Tensor:
        return self.scale(x)


class RunningAmax(nn.Module):
    """Divides by a running maximum, in a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.amax = torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        self.amax = torch.maximum(0.9 * self.amax, x.detach().abs().max())
        return x / self.amax


class PlainTensor(_Net):
    """A module keeps a running maximum in a tensor that is no buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.quantize = RunningAmax()

    def between(self, x: Tensor) -> Tensor:
        return self.quantize(x)


class Quantized(nn.Module):
    """Rounds in one of two ways; which one, it has learned, and tells in an extra state that it does not take back."""

    def __init__(self) -> None:
        super().__init__()
        self.kind, self._calls = "nf4", 0

    def forward(self, x: Tensor) -> Tensor:
        self._calls += 1
        self.kind = "fp4" if self._calls >= 2 else self.kind
        steps = 16.0 if self.kind == "fp4" else 8.0
        return x + (torch.round(x * steps) / steps - x).detach()

    def get_extra_state(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def set_extra_state(self, state: Any) -> None:
        pass


class QuantKindIgnored(_Net):
    """A module keeps how its packed weights are to be read in an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = Quantized()

    def between(self, x: Tensor) -> Tensor:
        return self.packed(x)


class ModuleGlobal(_Net):
    """A cache of the module that it is defined in."""

    def between(self, x: Tensor) -> Tensor:
        _SEEN["mean"] = 0.5 * _SEEN.get("mean", 0.0) + 0.5 * float(x.detach().mean())
        return x - _SEEN["mean"]


class FirstBatchTable(_Net):
    """Normalizes by the first batch that this process has seen."""

    def between(self, x: Tensor) -> Tensor:
        if not hasattr(self, "_table"):
            self._table = x.detach().std(dim=0) + 0.1
        return x / self._table


class TiedLate(nn.Module):
    """Ties its two layers in the second forward; until then, and after a resume, they are two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self._calls += 1
        weight = self.first.weight if self._calls > 2 else self.last.weight
        return nn.functional.linear(torch.relu(self.first(x)), weight, self.last.bias)


class RandomDepth(_Net):
    """From its third call on it sometimes leaves a layer out: what is drawn depends on a counter that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.depth = SometimesNothing()

    def between(self, x: Tensor) -> Tensor:
        return self.depth(x)


class SometimesNothing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self._calls += 1
        return x * (torch.rand(()) + 0.5) if self._calls > 2 else x


class LateSwitch(_Net):
    """Changes at its fourteenth call, long after a resume."""

    def __init__(self) -> None:
        super().__init__()
        self.switch = SwitchesAt14()

    def between(self, x: Tensor) -> Tensor:
        return self.switch(x)


class SwitchesAt14(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self._calls += 1
        return x * (0.5 if self._calls >= 14 else 1.0)


class ProcessNumber(_Net):
    """Adds something that depends on which process it is."""

    def __init__(self) -> None:
        super().__init__()
        self.process = OfThisProcess()

    def between(self, x: Tensor) -> Tensor:
        return self.process(x)


class OfThisProcess(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + (os.getpid() % 10007) / 10007


class Clock(_Net):
    """Adds something that depends on the time."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = OfTheTime()

    def between(self, x: Tensor) -> Tensor:
        return self.clock(x)


class OfTheTime(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 1e-3 * (time.monotonic() % 1)


class MetricScale(_Net):
    """Scales by the smallest loss, which a metric keeps and does not save."""

    def between(self, x: Tensor) -> Tensor:
        return x * (1.0 + 0.1 * min(Metric.smallest, 1.0))


class Metric:
    """Its state is not persistent."""

    smallest = 1.0

    def on_step(self, *, step: int, loss: float) -> None:
        Metric.smallest = min(Metric.smallest, loss)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass


class StepOfItsOwn(torch.optim.SGD):
    """Corrects its bias by a step that it counts beside its state."""

    def __init__(self, params, lr) -> None:
        super().__init__(params, lr=lr)
        self._count = 0

    def step(self, closure=None):
        self._count += 1
        for group in self.param_groups:
            group["lr"] *= 1 - 0.5**self._count
        super().step(closure)
        for group in self.param_groups:
            group["lr"] /= 1 - 0.5**self._count


class Lookahead(torch.optim.SGD):
    """Every third step goes half the way back to slow weights, which are in no state."""

    def __init__(self, params, lr) -> None:
        super().__init__(params, lr=lr)
        self._slow = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        super().step(closure)
        for group, slow in zip(self.param_groups, self._slow, strict=True):
            for p, held in zip(group["params"], slow, strict=True):
                held.lerp_(p, 0.1)
                p.lerp_(held, 0.5)


class KeepsGradients(torch.optim.SGD):
    """Carries half of each gradient over to the next step, in ``.grad``, which nobody saves."""

    def zero_grad(self, set_to_none: bool = True) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.5)


class HiddenSchedule:
    """Halves every third step, by a counter that its state does not have."""

    def __init__(self, optimizer) -> None:
        self._optimizer, self._since, self.steps = optimizer, 0, 0

    def step(self) -> None:
        self.steps, self._since = self.steps + 1, self._since + 1
        if self._since % 4 == 0:
            for group in self._optimizer.param_groups:
                group["lr"] *= 0.5

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state["steps"]


class _Numbers(Dataset[Any]):
    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x = torch.linspace(-1, 1, 8) * (index + 1) / 64
        return x, x.flip(0)


class GetsHarder(_Numbers):
    """Noise that grows with the number of samples that this object has handed out."""

    def __init__(self) -> None:
        self._taken = 0

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        self._taken += 1
        x, y = super().__getitem__(index)
        return x + 0.001 * self._taken, y


class OwnNoise(_Numbers):
    """Noise from a NumPy generator of its own."""

    def __init__(self) -> None:
        self._noise = np.random.default_rng(0)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().__getitem__(index)
        return x + torch.from_numpy(self._noise.normal(size=8).astype(np.float32)), y


class Stream(IterableDataset[Any]):
    """Numbers one after the other; goes on where its state says. Sound by itself."""

    def __init__(self, rank: int = 0, world_size: int = 1) -> None:
        self._next, self._step = rank, world_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            worker = torch.utils.data.get_worker_info()
            x = torch.linspace(-1, 1, 8) * (self._next % 97) / 97 + (0 if worker is None else worker.id)
            self._next += self._step
            yield x, x.flip(0)

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._next = state["next"]


class OffByOne(Stream):
    """Its state is that before the last sample, which comes twice."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._next = state["next"] - self._step


class ShuffleBuffer(Stream):
    """Draws from a buffer of the samples to come; the state has the place in the stream, not the buffer."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        source = super().__iter__()
        held = [next(source) for _ in range(8)]
        while True:
            place = int(torch.randint(len(held), ()))
            yield held[place]
            held[place] = next(source)


class PerturbsOld(Bug):
    """A component that shakes the weights after the fourth step of a process: of a process, not of the run."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0

    def plant(self) -> None:
        @wrap(Trainer, "__init__")
        def make(original, trainer, *args, **named):
            original(trainer, *args, **named)
            _TRAINERS.append(trainer)

    def on_step(self, *, step: int, loss: float) -> None:
        self._steps += 1
        if self._steps == 4:
            with torch.no_grad():
                for parameter in training_of(_TRAINERS[-1]).model.named_parameters.values():
                    local(parameter).add_(0.01)


class SlowAverage:
    """An average of the loss whose weight depends on a counter that is not in its state. Nothing depends on it."""

    def __init__(self) -> None:
        self.average, self._count = 0.0, 0

    def on_step(self, *, step: int, loss: float) -> None:
        self._count += 1
        self.average += (loss - self.average) / self._count

    def state_dict(self) -> dict[str, Any]:
        return {"average": self.average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.average = state["average"]


class ModeOfTheProcess(_Net):
    """After two calls it sets a variable of the environment, by which it goes; a resumed process begins without."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0

    def between(self, x: Tensor) -> Tensor:
        self._calls += 1
        if self._calls == 3:
            os.environ["ZOO_TEMPERATURE"] = "0.5"
        return x * float(os.environ.get("ZOO_TEMPERATURE", "1"))
