"""Group ``launch``: how many ranks are started, and how long they may wait for each other."""

from dataclasses import dataclass

from ckptrun.config.ranges import at_least

__all__ = ["LaunchConfig"]


@dataclass(kw_only=True, slots=True)
class LaunchConfig:
    """How ranks are started. Under torchrun, torchrun decides their number."""

    nproc: int | None = None
    """Ranks to start; unset: what the mesh needs (``auto`` brings it to 4)."""
    timeout_seconds: float = 120.0
    """How long a rank waits for the others in one collective before it gives up."""

    stop_seconds: float = 8.0
    """After SIGTERM: how long a rank may take to reach the next step boundary and save; then it ends at once. Whoever
    sends SIGTERM must wait longer before SIGKILL (torchrun waits 30 s)."""

    cells_in_parallel: int | None = None
    """How many cells of a sweep run at a time; unset: one per core, as far as memory reaches, and one where ranks are
    on a GPU or a cell is a command (``job=command``), whose ports and files are not known."""

    def __post_init__(self) -> None:
        at_least("launch.cells_in_parallel", self.cells_in_parallel, 1)
        at_least("launch.nproc", self.nproc, 1)
        at_least("launch.timeout_seconds", self.timeout_seconds, 1)
        at_least("launch.stop_seconds", self.stop_seconds, 0)
