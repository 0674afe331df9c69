"""What the legs of a proof have left: what there is to judge by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ckptrun.evidence.starts import Start
from ckptrun.fault import Fired, PlannedFault
from ckptrun.proof.subject import Run, Subject

__all__ = ["Material"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What there is to judge by."""

    subject: Subject
    ignore: Sequence[str]
    """Leaves that are not compared: ``proof.ignore``."""
    has_controls: bool
    """Whether controls are asked for."""
    starts: Sequence[Start]
    planned: Sequence[PlannedFault]
    fired: Sequence[Fired]
    failure: Start | None
    """A start that ended in a way that was not planned."""
    kept: Mapping[str, str]
    """Checkpoint -> a copy that nobody removes."""

    @property
    def resumes(self) -> list[Start]:
        """Starts that have loaded a checkpoint of the run."""
        return [start for start in self.starts if start.resumed_from is not None]

    @property
    def run(self) -> Run:
        """The one under proof, as it begins."""
        return self.subject.run("run")

    @property
    def later_run(self) -> Run:
        """The same once it was resumed."""
        return self.subject.run("run", is_later=True)

    @property
    def reference(self) -> Run:
        """What the first start is held against."""
        return self.subject.run("reference")

    @property
    def reference_of_later(self) -> Run:
        """What the starts after the first are held against."""
        return self.subject.run("resumed_reference", is_later=True) if self.subject.reshapes else self.reference
