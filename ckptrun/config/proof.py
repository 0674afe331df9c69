"""Group ``proof``: what is checked."""

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["ProofConfig", "ReloadCheck"]


class ReloadCheck(StrEnum):
    """When a checkpoint is loaded into freshly built objects and compared with what was live at the request."""

    none = "none"
    """Never; the run then proves nothing."""
    final = "final"
    """The last checkpoint, at the end of the run."""
    every_save = "every_save"
    """Each checkpoint right after its commit, and the last at the end; training waits meanwhile."""


@dataclass(kw_only=True, slots=True)
class ProofConfig:
    """What is checked."""

    reload: ReloadCheck = ReloadCheck.final
    """When checkpoints are loaded and compared bit by bit with the state at the request."""
    reference: str | None = None
    """The folder of another run of the same config, on as many ranks: at the end this run, all its starts together,
    must have repeated it step by step (loss, gradient norm, learning rate, content of the batches, random streams), and
    the last state must have its digests."""
