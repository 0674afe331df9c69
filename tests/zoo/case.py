"""What a case of the zoo is: one bug in one job, how it gets there, and how the proof must end."""

from dataclasses import dataclass, field
from importlib import import_module

__all__ = ["ALONE", "CNN", "DDP", "FSDP", "GPT", "NUMBERS", "Case", "custom"]

PLANTED = "tests.zoo.planted"
PROOF = ("fault=sigkill", "train.steps=8", "checkpoint.interval_steps=3", "proof.controls=none")
NUMBERS = ("model=mlp", "model.features=[8,8,8,8]", "data=random", "data.samples=64", "train.micro_batch=4")
GPT = (
    "model=gpt", "model.layers=1", "model.width=32", "model.heads=2", "model.context=16", "data=python_source",
    "data.max_bytes=20000", "train.micro_batch=2",
)  # fmt: skip
CNN = ("model=cnn", "model.channels=[4]", "data=shapes", "data.size=8", "data.samples=64", "train.micro_batch=4")
ALONE = ("parallelism=none",)
DDP = ("parallelism=ddp", "launch.nproc=2")
FSDP = ("parallelism=fsdp", "launch.nproc=2")


def custom(group: str, name: str) -> tuple[str, ...]:
    """The overrides that choose a class of the zoo for a config group."""
    return (f"{group}=custom", f"{group}._target_={PLANTED}.{name}")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One bug in one job."""

    bug: str
    """What goes wrong, for people."""
    ids: str = ""
    """In the list of bugs seen in the wild; empty: it is in no list."""
    plant: str
    """The class that holds it, below ``tests.zoo.planted``."""
    seam: str = "components.bug"
    """The config key that names the class."""
    args: dict[str, object] = field(default_factory=dict)
    job: tuple[str, ...] = (*NUMBERS, *ALONE)
    verdict: str = "different"
    exit_code: int = 3
    check: str
    """The check that must have found it."""
    blame: str | None
    words: tuple[str, ...] = ()
    """What the reason must say: leaf, module, rank, step ..."""
    is_quick: bool = False
    """Whether it is run by default."""

    @property
    def name(self) -> str:
        """Of the test."""
        return self.plant

    @property
    def overrides(self) -> tuple[str, ...]:
        """The whole command line."""
        chosen = () if "." in self.seam else (f"{self.seam}=custom",)
        target = f"{self.seam}._target_={PLANTED}.{self.plant}"
        args = [f"{self.seam}.args.{key}={value}" for key, value in self.args.items()]
        return (*PROOF, *self.job, *chosen, target, *args)

    @property
    def how(self) -> str:
        """What the class that holds the bug says of itself."""
        module, _, name = self.plant.rpartition(".")
        doc = getattr(import_module(f"{PLANTED}.{module}"), name).__doc__ or ""
        return " ".join(doc.split("\n\n")[0].split())
