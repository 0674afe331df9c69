"""Jobs of the trainers that people use, and what a proof of each must come to."""

import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

JOBS = Path(__file__).resolve().parents[2] / "examples" / "jobs"


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting of one job."""

    name: str
    package: str
    """Whose trainer it is."""
    setting: str
    """For people."""
    job: str
    """A file in ``examples/jobs``."""
    options: tuple[str, ...] = ()
    ranks: int | None = None
    """Under torchrun; None: the command starts its own."""
    resume: tuple[str, ...] = ()
    """Options that only a resume has."""
    overrides: tuple[str, ...] = ()
    verdict: str = "equal"
    check: str = ""
    """Which check finds it."""
    blame: str | None = None
    lost: str = "-"
    """What is lost, in words."""
    upstream: str = "-"
    """The issue in its tracker, where one is known."""
    came: tuple[str, ...] = ()
    """With ``crash=save``: what states come to, each that there is."""

    @property
    def command(self) -> list[str]:
        """Of the job, with ``{run}`` for its folder."""
        start = [sys.executable]
        if self.ranks is not None:
            start += ["-m", "torch.distributed.run", "--nproc-per-node", str(self.ranks)]
        return [*start, str(JOBS / self.job), "--output_dir", "{run}", *self.options]

    @property
    def trainer(self) -> str:
        """Its name and version; only the name where it is not installed."""
        try:
            return f"{self.package} {version(self.package).partition('+')[0]}"
        except PackageNotFoundError:
            return self.package


CASES = [
    Case(name="plain", package="torch", setting="one process, one file per checkpoint", job="plain.py"),
    Case(name="gan", package="torch", setting="two optimizers that take turns", job="gan.py"),
    Case(name="ddp", package="torch", setting="DDP, 2 ranks, one file that is replaced", job="ddp.py", ranks=2),
    Case(name="fsdp2", package="torch", setting="FSDP2, 2 ranks, DCP", job="fsdp2.py", ranks=2),
    Case(
        name="torch_checkpointing",
        package="torch_checkpointing",
        setting="FSDP2, 2 ranks, saved in the background by another process",
        job="torch_checkpointing_fsdp2.py",
        ranks=2,
    ),
    Case(
        name="transformers",
        package="transformers",
        setting="Trainer, GPT-2, shuffled, killed between steps",
        job="hf_trainer.py",
        resume=("--resume",),
    ),
    Case(
        name="transformers_noise",
        package="transformers",
        setting="the same with random augmentation in the dataset",
        job="hf_trainer.py",
        options=("--noise",),
        resume=("--resume",),
        verdict="different",
        check="trajectory",
        blame="rng",
        lost="the batch that a loader is ahead by is drawn again from another place of the random stream",
        upstream="transformers#39215",
    ),
    Case(
        name="transformers_cut_save",
        package="transformers",
        setting="Trainer, killed in the middle of a save",
        job="hf_trainer.py",
        resume=("--resume",),
        overrides=("fault.point=at_request", "fault.step=10"),
        verdict="different",
        check="resume",
        lost="an incomplete newest folder ends every resume until somebody removes it",
        upstream="transformers#35525",
    ),
    Case(
        name="transformers_ddp",
        package="transformers",
        setting="Trainer with DDP, 2 ranks under torchrun",
        job="hf_trainer.py",
        ranks=2,
        resume=("--resume",),
    ),
    Case(
        name="transformers_jit",
        package="transformers",
        setting="Trainer, saves just in time on SIGTERM, which waits for data",
        job="hf_preemptible.py",
        options=("--read_seconds", "1.1"),
        resume=("--resume",),
        overrides=("fault=sigterm", "fault.step=6"),
    ),
    Case(
        name="transformers_jit_backward",
        package="transformers",
        setting="the same, where the model takes the time",
        job="hf_preemptible.py",
        options=("--forward_seconds", "1.1"),
        resume=("--resume",),
        overrides=("fault=sigterm", "fault.step=6"),
        verdict="different",
        check="trajectory",
        blame="rng",
        lost="saved after backward, before the update: that step is taken anew, with random streams as its first try left them",
    ),
    Case(
        name="transformers_jit_cut",
        package="transformers",
        setting="the same, killed before its just-in-time save is complete",
        job="hf_preemptible.py",
        options=("--forward_seconds", "1.1"),
        resume=("--resume",),
        overrides=("fault=sigterm", "fault.step=6", "fault.more=[{kind: sigkill, point: at_request}]"),
        verdict="different",
        check="resume",
        lost="the folder has a marker that says so, which nobody reads: it ends every resume until somebody removes it",
        upstream="transformers#35525",
    ),
    Case(
        name="lightning",
        package="lightning",
        setting="saves at the end of each epoch, no dropout, in order",
        job="lightning_ddp.py",
    ),
    Case(
        name="lightning_ddp",
        package="lightning",
        setting="the same with DDP on 2 ranks, which Lightning starts",
        job="lightning_ddp.py",
        options=("--devices", "2"),
    ),
    Case(
        name="lightning_dropout",
        package="lightning",
        setting="the same with dropout, one process",
        job="lightning_ddp.py",
        options=("--dropout", "0.2"),
        verdict="different",
        check="trajectory",
        blame="rng",
        lost="random streams are in no checkpoint",
    ),
    Case(
        name="lightning_mid_epoch",
        package="lightning",
        setting="saves in the middle of an epoch, plain DataLoader",
        job="lightning_ddp.py",
        options=("--every_n_steps", "3"),
        verdict="different",
        check="trajectory",
        blame="data",
        lost="the data of the epoch begin again",
    ),
    Case(
        name="fabric",
        package="lightning",
        setting="Fabric, own loop, in order, saves in the middle of an epoch",
        job="fabric.py",
    ),
    Case(
        name="fabric_ddp",
        package="lightning",
        setting="the same with DDP on 2 ranks, which Fabric starts",
        job="fabric.py",
        options=("--devices", "2"),
    ),
    Case(
        name="fabric_shuffle",
        package="lightning",
        setting="the same on 1 rank, shuffled by the distributed sampler that Fabric puts in",
        job="fabric.py",
        options=("--shuffle",),
        verdict="different",
        check="trajectory",
        blame="data",
        lost="the number of the epoch, which Fabric counts from 0 again: the epochs after a resume have the orders of the first ones",
    ),
    Case(
        name="accelerate",
        package="accelerate",
        setting="own loop, in order, saves in the middle of an epoch",
        job="accelerate_loop.py",
    ),
    Case(
        name="accelerate_shuffle",
        package="accelerate",
        setting="the same, shuffled",
        job="accelerate_loop.py",
        options=("--shuffle",),
        verdict="different",
        check="trajectory",
        blame="data",
        lost="the place in the epoch comes back, its order does not",
        upstream="accelerate#4195",
    ),
    Case(
        name="accelerate_seedable",
        package="accelerate",
        setting="shuffled by its seedable sampler",
        job="accelerate_loop.py",
        options=("--shuffle", "--seedable"),
        verdict="different",
        check="trajectory",
        blame="data",
        lost="the number of the epoch: the next epoch after a resume has the order of the first",
        upstream="accelerate#3996",
    ),
    Case(
        name="accelerate_set_epoch",
        package="accelerate",
        setting="the same, told the epoch at its beginning by the job",
        job="accelerate_loop.py",
        options=("--shuffle", "--seedable", "--set_epoch"),
    ),
    Case(
        name="datasets",
        package="datasets",
        setting="streamed in order, resumed by the state of the stream",
        job="streaming.py",
    ),
    Case(
        name="datasets_shuffle",
        package="datasets",
        setting="the same, shuffled through a buffer",
        job="streaming.py",
        options=("--shuffle_buffer", "32"),
        verdict="different",
        check="trajectory",
        blame="data",
        lost="the examples that are in the buffer, as its documentation says",
    ),
]

_CRASH = ("crash=save", "crash.power_cut=false")

CRASH_CASES = [
    Case(
        name="plain",
        package="torch",
        setting="one process, another name first, then renamed",
        job="plain.py",
        overrides=_CRASH,
        came=("equal",),
    ),
    Case(
        name="ddp",
        package="torch",
        setting="DDP, 2 ranks, one file that is replaced",
        job="ddp.py",
        ranks=2,
        overrides=_CRASH,
        came=("equal",),
    ),
    Case(
        name="fsdp2",
        package="torch",
        setting="FSDP2, 2 ranks, DCP, which writes `.metadata` last",
        job="fsdp2.py",
        ranks=2,
        overrides=_CRASH,
        came=("equal",),
    ),
    Case(
        name="transformers",
        package="transformers",
        setting="Trainer, one process",
        job="hf_trainer.py",
        resume=("--resume",),
        overrides=_CRASH,
        verdict="different",
        came=("equal", "failed"),
        lost="until `trainer_state.json` is whole, the newest folder ends every resume",
        upstream="transformers#35525",
    ),
    Case(
        name="transformers_ddp",
        package="transformers",
        setting="Trainer with DDP, 2 ranks under torchrun",
        job="hf_trainer.py",
        ranks=2,
        resume=("--resume",),
        overrides=_CRASH,
        verdict="different",
        blame="rng",
        came=("equal", "failed", "different"),
        lost="the same; and a rank that is gone before it saves its random streams begins with others, as nobody waits for it",
        upstream="transformers#35525",
    ),
    Case(
        name="lightning",
        package="lightning",
        setting="`save_last`, in order, resumed from `last.ckpt`",
        job="lightning_ddp.py",
        overrides=_CRASH,
        verdict="different",
        blame="progress",
        came=("equal", "lost_work"),
        lost="`last.ckpt` follows after the checkpoint that it is a copy of",
    ),
    Case(
        name="fabric",
        package="lightning",
        setting="Fabric, own loop",
        job="fabric.py",
        overrides=_CRASH,
        came=("equal",),
    ),
    Case(
        name="accelerate",
        package="accelerate",
        setting="own loop, `save_state`",
        job="accelerate_loop.py",
        overrides=_CRASH,
        verdict="different",
        came=("equal", "failed"),
        lost="`save_state` fills the folder under its last name: until it is whole, `load_state` of the newest one raises",
    ),
]
