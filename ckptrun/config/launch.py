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

    def __post_init__(self) -> None:
        at_least("launch.nproc", self.nproc, 1)
        at_least("launch.timeout_seconds", self.timeout_seconds, 1)
