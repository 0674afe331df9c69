"""A small training run on this rank, for tests: build, step, and look at every bit of what came out."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ckptrun.config.model import CNNConfig, GPTConfig, MLPConfig, ModelConfig, MoEConfig
from ckptrun.config.parallelism import AUTO, MeshShape, ParallelismConfig, ParallelismKind, resolve_mesh
from ckptrun.config.precision import PrecisionKind
from ckptrun.model import CNN, GPT, MLP, ModelLayout, MoE, build_loss, layout_of
from ckptrun.parallelism import ParallelModel, Settings, build_mesh, data_parallel_rank, parallelize

KINDS = tuple(str(kind) for kind in ParallelismKind)
TENSOR_KINDS = tuple(str(kind) for kind in ParallelismKind if "tensor" in kind.axes)
DATA_KINDS = tuple(kind for kind in KINDS if kind not in TENSOR_KINDS)

# What 4 ranks are made into (hsdp_tp takes its shard axis from 8).
DEGREES: dict[str, dict[str, int | str]] = {
    "none": {},
    "ddp": {"replicate": AUTO},
    "fsdp": {"shard": AUTO},
    "hsdp": {"replicate": 2, "shard": AUTO},
    "tp": {"tensor": AUTO},
    "fsdp_tp": {"shard": AUTO, "tensor": 2},
    "hsdp_tp": {"replicate": 2, "shard": AUTO, "tensor": 2},
    "ddp_tp": {"replicate": AUTO, "tensor": 2},
    "fsdp1": {"shard": AUTO},
    "hsdp1": {"replicate": 2, "shard": AUTO},
    "fsdp1_tp": {"shard": AUTO, "tensor": 2},
}


def config_of(model: str, *, tied: bool = False, dropout: float = 0.1, layers: int = 2) -> ModelConfig:
    """A config of each model with sizes that four ranks do not divide, where tensor parallelism allows it."""
    gpt: dict[str, Any] = {"layers": layers, "heads": 4, "width": 20, "context": 8, "vocabulary": 34}
    gpt |= {"dropout": dropout, "tied_embeddings": tied}
    match model:
        case "gpt":
            return GPTConfig(**gpt)
        case "moe":
            return MoEConfig(**gpt, experts=layers + 1, experts_per_token=layers)
        case "mlp":
            return MLPConfig(features=[6, 12, 10, 20, 3] if layers > 1 else [6, 12, 3])
        case _:
            return CNNConfig(channels=[5, 7], classes=4, dropout=dropout)


def mesh_shape(kind: str, world_size: int) -> MeshShape:
    """``world_size`` ranks as a mesh of this kind; under ``none`` every rank is on its own."""
    parallelism = ParallelismConfig(kind=ParallelismKind(kind), **DEGREES[kind])
    return resolve_mesh(parallelism, 1 if kind == "none" else world_size)


def build_model(config: ModelConfig) -> nn.Module:
    match config:
        case MoEConfig():
            return MoE(config)
        case GPTConfig():
            return GPT(config)
        case MLPConfig():
            return MLP(config)
        case CNNConfig():
            return CNN(config)
        case _:
            raise TypeError(config)


def bits(tensor: Tensor) -> bytes:
    """The bits of the whole tensor; a collective for a DTensor."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cloned(state: Any) -> Any:
    """A deep copy of nested state, so that nothing in it lives on."""
    match state:
        case Tensor():
            return state.detach().clone()
        case dict():
            return {key: cloned(value) for key, value in state.items()}
        case list():
            return [cloned(value) for value in state]
        case _:
            return state


@dataclass(frozen=True)
class Recipe:
    """What is trained, and how."""

    kind: str = "none"
    model: str = "gpt"
    layers: int = 2
    tied: bool = False
    dropout: float = 0.1
    precision: str = "fp32"
    compile: bool = False
    activation_checkpointing: bool = False
    accumulate: int = 1
    freeze: tuple[str, ...] = ()
    unused: bool = False
    """Give the model a parameter that no forward uses."""
    share_batch: bool = False
    """All data-parallel ranks together see one batch of 8, so that kinds compare."""

    def but(self, **changes: Any) -> "Recipe":
        return replace(self, **changes)


@dataclass
class Run:
    """A model, an optimizer and a loss on this rank. ``change`` may alter the model before it is laid out."""

    recipe: Recipe
    change: Callable[[nn.Module], None] = lambda _: None
    layout: ModelLayout | None = None
    seed: int = 7
    initial: dict[str, Tensor] = field(init=False)
    """Values of all parameters and buffers before the model was laid out."""
    model: ParallelModel = field(init=False)

    def __post_init__(self) -> None:
        recipe = self.recipe
        self.config = config_of(recipe.model, tied=recipe.tied, dropout=recipe.dropout, layers=recipe.layers)
        module = self._built()
        self.initial = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        self.shape = mesh_shape(recipe.kind, dist.get_world_size() if dist.is_initialized() else 1)
        self.mesh = build_mesh(self.shape, "cpu")
        settings = Settings(
            kind=ParallelismKind(recipe.kind),
            device=torch.device("cpu"),
            precision=PrecisionKind(recipe.precision),
            activation_checkpointing=recipe.activation_checkpointing,
            compile=recipe.compile,
        )
        self.model = parallelize(module, self.layout or layout_of(self.config), mesh=self.mesh, settings=settings)
        trained = [parameter for parameter in self.model.named_parameters.values() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-2, foreach=False)
        self.loss = build_loss(self.config.loss)
        self.data_rank = data_parallel_rank(self.mesh)
        torch.manual_seed(1000 + self.data_rank)

    def _built(self) -> nn.Module:
        torch.manual_seed(self.seed)
        module = build_model(self.config)
        if self.recipe.unused:
            module.never_used = nn.Parameter(torch.ones(3, 5))
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not name.startswith(self.recipe.freeze or ("no such",)))
        self.change(module)
        return module

    def batch(self, step: int, part: int = 0) -> tuple[Tensor, Tensor]:
        """Samples of this data-parallel rank in one pass of one step."""
        share = self.recipe.share_batch
        generator = torch.Generator().manual_seed(step * 1000 + part * 100 + (0 if share else self.data_rank))
        inputs, targets = self._draw(8 if share else 2, generator)
        mine = slice(self.data_rank, None, self.shape.data_parallel) if share else slice(None)
        return inputs[mine], targets[mine]

    def _draw(self, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        match self.config:
            case GPTConfig(context=context, vocabulary=vocabulary):
                tokens = torch.randint(0, vocabulary, (size, context + 1), generator=generator)
                return tokens[:, :-1], tokens[:, 1:]
            case MLPConfig(features=features):
                drawn = torch.rand(size, features[0] + features[-1], generator=generator)
                return drawn[:, : features[0]], drawn[:, features[0] :]
            case _:
                targets = torch.randint(0, 4, (size,), generator=generator)
                return torch.rand(size, 1, 9, 9, generator=generator), targets

    def backward(self, step: int) -> Tensor:
        """All passes of one step, without the optimizer; this rank's mean loss."""
        total = torch.zeros(())
        passes = self.recipe.accumulate
        for part in range(passes):
            inputs, targets = self.batch(step, part)
            with self.model.accumulating(last=part == passes - 1):
                loss = self.loss(self.model.module, inputs, targets) / passes
                loss.backward()
            total += loss.detach()
        self.model.sync_buffers()
        return total

    def step(self, step: int) -> tuple[str, str]:
        """One optimizer step with clipping; the bits of this rank's loss and of the global gradient norm."""
        loss = self.backward(step)
        norm = self.model.global_norm()
        self.model.scale_gradients(torch.clamp(0.5 / norm, max=1.0))
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.item().hex(), norm.item().hex()

    def steps(self, first: int, last: int) -> list[tuple[str, str]]:
        return [self.step(step) for step in range(first, last)]

    def saved(self) -> dict[str, Any]:
        """Everything the next step depends on, cut off from this run."""
        return cloned(
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "rng": torch.get_rng_state(),
            }
        )

    def load(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(cloned(saved["optimizer"]))
        torch.set_rng_state(saved["rng"])

    def held(self) -> dict[str, bytes]:
        """The bits that this rank holds of every leaf of the model."""
        return {name: bits(local(value)) for name, value in self.model.state_dict().items()}


def resumed_differences(recipe: Recipe, *, before: int = 1, after: int = 1) -> list[str]:
    """Train, save, go on; load into fresh objects, go on: what is not the same bit for bit on this rank."""
    run = Run(recipe)
    run.steps(0, before)
    saved = run.saved()
    expected = run.steps(before, before + after), run.held()
    fresh = Run(recipe, seed=8)
    fresh.load(saved)
    got = fresh.steps(before, before + after), fresh.held()
    different = [f"step {before + i}" for i in range(after) if expected[0][i] != got[0][i]]
    return different + [name for name, value in expected[1].items() if got[1][name] != value]
