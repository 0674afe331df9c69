"""What rank 0 writes and prints about a run. On other ranks every method does nothing."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ckptrun.checkpoint.manager import Commit
from ckptrun.config.model import CustomModelConfig, GPTConfig
from ckptrun.config.parallelism import MeshShape
from ckptrun.config.run import RunConfig, to_plain
from ckptrun.console import say, short_path, summarise
from ckptrun.evidence.events import RunRecord, environment
from ckptrun.evidence.run_folder import ENVIRONMENT, EVENTS
from ckptrun.evidence.starts import EventKind
from ckptrun.evidence.verdict import Check, Status, Verdict, write_verdict
from ckptrun.files import append_line, read_lines, with_bits, write_json
from ckptrun.ranks import Ranks
from ckptrun.run.leg import Leg
from ckptrun.trainer import StepFacts

__all__ = ["Report"]

_NAMES = {"repeats": "repeats", "trajectory": "trajectory", "final_state": "final state", "faults": "faults"}


class Report:
    """The run folder's files and the last lines on the terminal.

    Args:
        config: The checked config.
        leg: What this start is about.
        mesh_shape: For the environment record.
        device: For the environment record.
        command: The command line.
        ranks: To know whether this is rank 0.
    """

    def __init__(
        self,
        config: RunConfig,
        leg: Leg,
        *,
        mesh_shape: MeshShape,
        device: torch.device,
        command: Sequence[str],
        ranks: Ranks,
    ) -> None:
        self._config = config
        # What a proof runs beside the run would stand beside it in TensorBoard, as if it were another run.
        self._has_board = leg.name == "run"
        self._is_fresh = leg.fresh
        self._mesh = mesh_shape.degrees
        self._device = device
        self._command = command
        self._world_size = ranks.world_size
        self._is_first = ranks.rank == 0
        self._processes = ranks.gather(os.getpid())
        self._record: RunRecord | None = None

    def note_launch(self) -> int:
        """Note that ranks have been started; return how often they had been before. Rank 0 calls, first of all."""
        file = self._config.run_dir / EVENTS
        before = len([event for event in read_lines(file) if event["event"] == EventKind.launch])
        seed = os.environ.get("PYTHONHASHSEED")
        append_line(file, {"event": EventKind.launch, "start": before, "hash_seed": seed, "fresh": self._is_fresh})
        return before

    def begin(self, *, first_step: int, damaged: Mapping[str, str], resumed_from: str | None) -> None:
        """Open the run folder's files.

        Args:
            first_step: The step that the run goes on from.
            damaged: Checkpoints that were passed over -> why.
            resumed_from: The checkpoint that was loaded, if one was.
        """
        if not self._is_first:
            return
        facts = {
            **environment(device=str(self._device), mesh=self._mesh, world_size=self._world_size),
            "processes": self._processes,
            "command": list(self._command),
        }
        self._record = RunRecord(self._config.run_dir, first_step=first_step, has_board=self._has_board)
        self._record.config(to_plain(self._config))
        write_json(self._config.run_dir / ENVIRONMENT, facts)
        self._record.event(
            EventKind.start, step=first_step, world_size=self._world_size, mesh=self._mesh, resumed_from=resumed_from
        )
        for folder, reason in damaged.items():
            self._record.event(EventKind.skipped, step=first_step, folder=folder, reason=reason)

    def step(self, facts: StepFacts) -> None:
        """Note one step; loss, norm and learning rate as numbers, and their bits."""
        if self._record is None:
            return
        self._record.event(
            EventKind.step,
            step=facts.step,
            **with_bits(loss=facts.loss, gradient_norm=facts.gradient_norm, learning_rate=facts.learning_rate),
            seconds=round(facts.seconds, 6),
            skipped=facts.skipped,
        )
        unit, per_sample = self._unit()
        self._record.scalars(
            facts.step,
            {
                "train/loss": facts.loss,
                "train/learning_rate": facts.learning_rate,
                "train/gradient_norm": facts.gradient_norm,
                "train/step_seconds": facts.seconds,
                f"train/{unit}_per_second": facts.samples * per_sample / facts.seconds,
            },
        )

    def commit(self, commit: Commit) -> None:
        """Note one committed checkpoint."""
        if self._record is None:
            return
        values = {
            "blocked_seconds": round(commit.blocked_seconds, 6),
            "background_seconds": round(commit.background_seconds, 6),
            "bytes": commit.state_bytes,
        }
        self._record.event(EventKind.commit, step=commit.request.step, folder=commit.request.folder, **values)
        self._record.scalars(commit.request.step, {f"checkpoint/{name}": value for name, value in values.items()})

    def event(self, kind: EventKind, **facts: Any) -> None:
        """Note something else."""
        if self._record is not None:
            self._record.event(kind, **facts)

    def check(self, check: Check) -> None:
        """Note what a check came to."""
        self.event(EventKind.check, **check.as_json())

    def finish(self, verdict: Verdict, summary: Mapping[str, Any], *, asked: bool, in_proof: bool) -> None:
        """Write ``verdict.json`` and print the summary; in a proof, whose verdict covers more, only note the end."""
        if in_proof:
            self.event(EventKind.end, verdict=verdict.status, **summary)
            return
        if asked or verdict.status is Status.different:
            write_verdict(verdict, self._config.run_dir)
        self.event(EventKind.end, verdict=verdict.status, **summary)
        unit, per_sample = self._unit()
        speed = summary["samples_per_second"]
        skipped = f" ({summary['skipped_steps']} skipped: fp16 overflow)" if summary["skipped_steps"] else ""
        rows = {"steps": f"{summary['step']} of {self._config.train.steps}{skipped}"}
        if summary["first_loss"] is not None:
            rows["loss"] = f"{summary['first_loss']:.4f} -> {summary['last_loss']:.4f}"
        if speed is not None:
            rows["speed"] = f"{speed * per_sample:,.0f} {unit}/s"
        rows["checkpoints"] = (
            f"{summary['checkpoints']} committed, training was blocked for {summary['blocked_seconds']:.3f} s by saving"
            if summary["checkpoints"]
            else "none saved by this start"
        )
        rows["reload"] = _outcome(verdict) if asked or verdict.status is Status.different else "not asked for"
        rows |= {
            _NAMES[check.name]: check.detail
            for check in verdict.checks
            if check.name in _NAMES and check.status is Status.equal
        }
        rows["run folder"] = short_path(self._config.run_dir)
        rows["TensorBoard"] = f"tensorboard --logdir {shlex.quote(short_path(board_folder(self._config)))}"
        say("")
        summarise(rows)

    def close(self) -> None:
        """Flush and close the files."""
        if self._record is not None:
            self._record.close()
            self._record = None

    def _unit(self) -> tuple[str, int]:
        """What speed is counted in, and how many of it a sample has."""
        model = self._config.model
        if isinstance(model, GPTConfig):
            return "tokens", model.context
        if isinstance(model, CustomModelConfig) and type(self._config.data).__name__ != "CustomDataConfig":
            return "tokens", model.context
        return "samples", 1


def board_folder(config: RunConfig) -> Path:
    """The folder to start TensorBoard with: it names runs by their path from there, so the parent of the run folder.

    Where the user has said where the run folder is, anything may lie beside it.
    """
    folder = config.run_dir
    is_default = folder.parent.parent.name == "outputs" and folder.name == config.run.name
    return folder.parent if is_default else folder


def _outcome(verdict: Verdict) -> str:
    if verdict.status is Status.equal:
        # The last reload check is of the newest checkpoint.
        loads = [check for check in verdict.checks if check.name == "loaded_equals_saved"]
        return loads[-1].detail if loads else "not asked for"
    return f"{verdict.status.upper()}: {verdict.reason}" + (f" (blame: {verdict.blame})" if verdict.blame else "")
