"""What has fired, on disk, so that it does not fire again after the restart that it caused.

One file per fault and rank, written and synced before the fault strikes::

    <run>/faults/00000.rank_00002.json

Torch-free.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptrun.config.fault import FaultKind
from ckptrun.fault.plan import PlannedFault
from ckptrun.rank_names import fault_file_name, parse_fault_file

__all__ = ["FaultRecord", "Fired"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fired:
    """A fault that has struck."""

    index: int
    rank: int
    kind: FaultKind
    point: str
    step: int

    def __str__(self) -> str:
        return f"{self.kind} of rank {self.rank} at {self.point} of step {self.step}"


class FaultRecord:
    """The record of one run folder.

    Args:
        run_dir: The run folder; made if need be.
    """

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / "faults"

    def fired(self) -> list[Fired]:
        """What has struck so far, in the order of the plan."""
        found = []
        for path in sorted(self._folder.glob("*.json")):
            named = parse_fault_file(path.name)
            # A fault is recorded before it strikes; a file that was cut by its own fault says enough by its name.
            if named is not None:
                facts = _read(path)
                found.append(
                    Fired(
                        index=named[0],
                        rank=named[1],
                        kind=FaultKind(facts.get("kind", FaultKind.none)),
                        point=str(facts.get("point", "?")),
                        step=int(facts.get("step", 0)),
                    )
                )
        return found

    def file(self, fault: PlannedFault, rank: int) -> Path:
        """What says that ``fault`` has struck ``rank``."""
        return self._folder / fault_file_name(fault.index, rank)

    def note(self, fault: PlannedFault, *, rank: int, step: int) -> bool:
        """Write down that ``fault`` strikes now; False when it has struck this rank before."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self.file(fault, rank)
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        try:
            content = {"kind": fault.kind, "point": fault.point, "step": step}
            os.write(descriptor, json.dumps(content).encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return True


def _read(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text())
    except ValueError:
        return {}
    return facts if isinstance(facts, dict) else {}
