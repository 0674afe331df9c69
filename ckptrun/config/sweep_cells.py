"""Keys ``sweep.*``: which cells of a sweep are run, and how long one may take. Torch-free."""

from dataclasses import dataclass, field
from enum import StrEnum

from ckptrun.config.ranges import at_least

__all__ = ["CellsConfig", "Only"]


class Only(StrEnum):
    """Which cells of the last sweep in the folder are run again."""

    all = "all"
    """Every cell."""
    failed = "failed"
    """Those that failed, were different or not verified, or did not come to their end; the others stay as they are."""


@dataclass(kw_only=True, slots=True)
class CellsConfig:
    """Which cells of a sweep (``-m``) are run."""

    resume: bool = False
    """Leave cells as they are that came to an end in this folder before, with the same config, versions and files of
    the user's own."""
    only: Only = Only.all
    """Which cells are run, by what they came to before."""
    axes: dict[str, str] = field(default_factory=dict)
    """Of an experiment that is a sweep: key -> its values, as after ``-m``. One that is typed counts instead."""
    cell_seconds: float | None = None
    """A cell that takes longer is ended and counts as failed; unset: a proof may take an hour, or 20 times as long
    as the longest cell that came to its end, and a run that nothing is to happen to as long as it wants."""

    def __post_init__(self) -> None:
        at_least("sweep.cell_seconds", self.cell_seconds, 1)
