"""What a proof costs: a proof of ``experiment=smoke`` beside the same work done run by run with torchrun; the ledger.

    python benchmarks/proof.py [--rounds 3]

The same work, run by run: the reference, the run that is killed, its resume that is killed again, the second resume,
and one run for each of two controls, which leave a component out when they load.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from ckptrun.build import Builder
from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.config.checkpoint import SaveMode
from ckptrun.config.compose import config_from
from ckptrun.config.run import check_world
from ckptrun.evidence.ledger import Ledger
from ckptrun.ranks import Ranks
from ckptrun.run.determinism import make_deterministic
from ckptrun.run.observer import StepNotes
from ckptrun.trainer import Trainer

RANKS = 4


def proof(folder: Path) -> float:
    """Seconds of the whole command."""
    return timed([sys.executable, "-m", "ckptrun", "experiment=smoke", f"run.dir={folder}"], 0)


def by_hand(folder: Path) -> float:
    """Seconds of all commands that do the same work without a proof."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "-m", "ckptrun"]
    job, run, reference = ["experiment=smoke", "fault=none"], folder / "run", folder / "reference"
    killed = ["experiment=smoke", "fault.step=6", "fault.more=[{kind: sigkill, step: 6}]", f"run.dir={run}"]
    seconds = timed([*torchrun, *job, f"run.dir={reference}"], 0)
    for code in (1, 1, 0):
        seconds += timed([*torchrun, *killed, f"proof.reference={reference}"], code)
    for component in ("rng", "optimizer"):
        control = [f"run.dir={folder / component}", f"checkpoint.resume={run}/checkpoints/step_00000004"]
        control += [f"checkpoint.load.exclude=[{component}]", f"proof.reference={reference}"]
        seconds += timed([*torchrun, *job, *control], 1)
    return seconds


def timed(command: list[str], code: int) -> float:
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != code:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - began


class _Measured:
    """An observer that keeps a ledger, as a run does, and notes how long that takes."""

    def __init__(self, folder: Path) -> None:
        self.ledger = Ledger(folder, 0, first_step=0)
        self.line = StepNotes(start=0, share=None)
        self.seconds: list[float] = []
        self.steps: list[float] = []
        self._spent = 0.0

    def reached(self, point: object, step: int) -> None:
        pass

    def on_part(self, part: str, owner: str) -> None:
        pass

    def on_batch(self, inputs: object, targets: object) -> None:
        began = time.perf_counter()
        self.line.batch(inputs, targets)  # type: ignore[arg-type]
        self._spent += time.perf_counter() - began

    def on_step(self, facts: object) -> bool:
        began = time.perf_counter()
        self.ledger.append(self.line.of(facts))  # type: ignore[arg-type]
        self.seconds.append(self._spent + time.perf_counter() - began)
        self.steps.append(facts.seconds)  # type: ignore[attr-defined]
        self._spent = 0.0
        return False


def ledger(folder: Path) -> tuple[float, float]:
    """Median seconds per step of the default model, and of that in the ledger; one process."""
    config = config_from(["train.steps=120", "checkpoint=none", f"run.dir={folder}"])
    make_deterministic(config.train)
    builder = Builder(config, mesh_shape=check_world(config, 1), device=torch.device("cpu"), rank=0)
    built, measured = builder.build(), _Measured(folder)
    manager = CheckpointManager(
        folder,
        mode=SaveMode.none,
        keep=KeepLast(count=None),
        ranks=Ranks(),
        saving_group=None,
        stager=None,
        facts={},
    )
    Trainer(built.training, builder.plan_without_saves(), manager=manager, observer=measured).run()
    built.close()
    return statistics.median(measured.steps[10:]), statistics.median(measured.seconds[10:])


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=3)
    rounds = arguments.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        pairs = []
        # The first proof reads torch from the disk; what counts is a warm one.
        proof(Path(folder) / "warm")
        for number in range(rounds):
            place = Path(folder) / str(number)
            pairs.append((proof(place / "proof"), by_hand(place / "by_hand")))
        step, cost = ledger(Path(folder) / "ledger")
    own, other = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    print("| what | s |\n|---|---|")
    print(f"| proof of experiment=smoke, the whole command | {own:.1f} ({min(a for a, _ in pairs):.1f} at best) |")
    print(f"| the same work, torchrun for each run | {other:.1f} |")
    print(f"| times as fast | {ratio:.1f} |")
    print(f"\n| ledger, default model, one process | ms |\n|---|---|\n| step | {1e3 * step:.2f} |")
    print(f"| of that in the ledger | {1e3 * cost:.3f} ({100 * cost / step:.1f} %) |")


if __name__ == "__main__":
    main()
