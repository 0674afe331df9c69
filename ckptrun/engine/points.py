"""What the engine tells of a save while it goes on: the names of the points that it comes by, one hook of one shape.

On each rank, in this order: ``staging`` (a stager: memory is there, nothing is copied yet), ``before_write``,
``writing`` (in the middle of each file), ``after_write``; on rank 0 then ``before_manifest``, ``before_commit``,
``during_swap`` (only where a checkpoint is replaced), ``after_commit``; and ``removing`` (an older checkpoint is none
any more, and not yet deleted). Which step it is knows whoever hands the hook over.
"""

from collections.abc import Callable

__all__ = ["PointHook", "untold"]

PointHook = Callable[[str], None]
"""Called with the name of the point, in whatever thread or process comes by; it may not return."""


def untold(point: str) -> None:
    """Nobody wants to know."""
