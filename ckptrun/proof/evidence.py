"""What the legs of a proof have left: what there is to judge by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptrun.config.run import RunConfig
from ckptrun.evidence.starts import Start
from ckptrun.fault import Fired, PlannedFault
from ckptrun.proof.legs import Legs
from ckptrun.proof.outside_files import OutsideFiles

__all__ = ["Evidence"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What there is to judge by."""

    config: RunConfig
    after: RunConfig
    legs: Legs
    later_legs: Legs
    starts: Sequence[Start]
    planned: Sequence[PlannedFault]
    fired: Sequence[Fired]
    failure: Start | None
    """A start that ended in a way that was not planned."""
    kept: Mapping[str, str]
    """Checkpoint -> a copy that nobody removes."""
    outside: OutsideFiles
    """Knows which files legs have in common."""

    @property
    def resumes(self) -> list[Start]:
        """Starts that have loaded a checkpoint of the run."""
        return [start for start in self.starts if start.resumed_from is not None]

    @property
    def reference_of_later(self) -> Path:
        """What the starts after the first are held against."""
        return self.legs.folder("resumed_reference" if self.config.proof.reshapes else "reference")
