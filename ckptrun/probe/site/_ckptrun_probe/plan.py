"""What the probe is told: a JSON file, written before the job is started."""

from __future__ import annotations

import fnmatch
import json
import os
from typing import Any

__all__ = ["Fault", "Plan"]


class Fault:
    """One failure and its place; see ``ckptrun.fault.plan.PlannedFault``, of which this is the part that is needed."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.index: int = facts["index"]
        self.kind: str = facts["kind"]
        self.point: str = facts["point"]
        self.step: int | None = facts["step"]
        self.ranks: list[int] = facts["ranks"]
        self.share: float = facts["share"]
        self.files: dict[str, str] = facts["files"]
        """Rank -> the file that says that it has struck."""
        self.sizes: dict[str, int] = facts.get("sizes", {})
        """Of the files of the save that it strikes, by path in the job's folder; in bytes."""
        self.sizes_in_order: dict[str, list[int | None]] = facts.get("sizes_in_order", {})
        """The same of each rank, in the order in which it wrote them."""

    def size_at(self, rank: int, place: int) -> int | None:
        """The size of the file that ``rank`` wrote then as its ``place``-th; None where that is not known."""
        sizes = self.sizes_in_order.get(str(rank), [])
        return sizes[place] if place < len(sizes) else None


class Plan:
    """Everything that one start is about.

    Args:
        path: Of the JSON file.
    """

    def __init__(self, path: str) -> None:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123
            facts = json.load(file)
        self.path = path
        self.records: str = facts["records"]
        """Folder: a file per process."""
        self.output: str = facts["output"]
        """The folder that the job is told to write to."""
        self.faults = [Fault(fault) for fault in facts["faults"]]
        self.first_step: int = facts["first_step"]
        """What faults count steps from: the step that this start goes on from, as far as that is known before."""
        self.every: int = facts["digest_every_steps"]
        """Digests are taken at every so many steps."""
        self.by_update: bool = facts.get("by_update", False)
        """Whether every update is a step: optimizers take turns, and saves come between them."""
        self.optimizers: list[str] = facts.get("optimizers", [])
        """What the reference has stepped, in the order of their first steps."""
        self.is_deterministic: bool = facts["deterministic"]
        self.tells_places: bool = facts.get("tells_places", False)
        """Whether to say which code does something with a file, and when ranks have met."""
        self.warm: dict[str, str] = facts.get("warm", {})
        """Program -> the socket of a process that has imported what it imports, see ``warm``."""
        self.server: dict[str, Any] = facts.get("server", {})
        """What such a process is told."""
        self.checkpoints: str | None = facts.get("checkpoints")
        """A pattern of paths below ``output``: files that are checkpoints, by whatever function they are written."""
        self.watched_step: int | None = facts.get("watched_step")
        """The step of this start, counted from 1, whose operations are told one by one; None: of no step."""
        self.most_steps: int | None = facts.get("most_steps")
        """After how many steps of this start its ranks end; None: when they are done."""

    def is_checkpoint(self, path: str) -> bool:
        """Whether the user says that a file, or a folder that it is in, is a checkpoint."""
        if self.checkpoints is None:
            return False
        parts = os.path.relpath(path, self.output).split(os.sep)  # noqa: PTH206  # pathlib comes with the job alone
        return any(fnmatch.fnmatch("/".join(parts[:count]), self.checkpoints) for count in range(1, len(parts) + 1))
