"""What a run writes about itself while it runs: ``events.jsonl``, TensorBoard, ``config.yaml``.

Only rank 0 has one. Must not decide anything.
"""

import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy
import torch
import yaml
from torch.utils.tensorboard import SummaryWriter

from ckptrun.evidence.run_folder import CONFIG, EVENTS, TENSORBOARD
from ckptrun.evidence.starts import EventKind
from ckptrun.files import json_text

__all__ = ["RunRecord", "environment"]


class RunRecord:
    """The files of one run folder that grow while it runs. Appends: a resumed run continues them.

    Args:
        folder: The run folder; made if need be.
        first_step: The step the run starts from; what TensorBoard has of later steps is superseded.
        has_board: Whether anything is written for TensorBoard.
    """

    def __init__(self, folder: Path, *, first_step: int, has_board: bool = True) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._events: IO[str] = (folder / EVENTS).open("a", buffering=1)
        self._tensorboard = SummaryWriter(str(folder / TENSORBOARD), purge_step=first_step + 1) if has_board else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def event(self, kind: EventKind, **facts: Any) -> None:
        """Append one line to ``events.jsonl``. What must keep its bits comes with :func:`ckptrun.files.with_bits`."""
        self._events.write(json_text({"event": kind, **facts}) + "\n")

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write numbers to TensorBoard."""
        if self._tensorboard is None:
            return
        for name, value in values.items():
            self._tensorboard.add_scalar(name, value, step)

    def text(self, name: str, content: str) -> None:
        """Write a text to TensorBoard."""
        if self._tensorboard is not None:
            self._tensorboard.add_text(name, content)

    def config(self, plain: Mapping[str, Any]) -> None:
        """Write the resolved config to ``config.yaml`` and TensorBoard."""
        content = yaml.safe_dump(dict(plain), sort_keys=False)
        (self.folder / CONFIG).write_text(content)
        self.text("config", f"```yaml\n{content}```")

    def close(self) -> None:
        """Flush and close everything."""
        self._events.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def environment(*, device: str, mesh: Mapping[str, int], world_size: int) -> dict[str, Any]:
    """What the run ran on: versions, devices, threads, mesh, git state."""
    cuda = torch.cuda.is_available()
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "cuda": torch.version.cuda if cuda else None,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if cuda else ["cpu"],
        "device": device,
        "threads": torch.get_num_threads(),
        "mesh": dict(mesh),
        "world_size": world_size,
        "git": _git_state(),
    }


def _git_state() -> dict[str, Any] | None:
    """Commit and whether there are changes, of the working folder; None outside a repository or without git."""
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"commit": commit.stdout.strip(), "changed": bool(changes.stdout.strip())}
