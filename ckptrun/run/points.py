"""Tells all who want to know of each point that a run comes by: the watchdog first, the faults last."""

from collections.abc import Callable
from typing import Any

from ckptrun.config.fault import FaultPoint
from ckptrun.fault import FaultInjector

__all__ = ["Points"]


def _nobody(point: str, step: int) -> None:
    """No one waits for this rank, or this is the process that saves beside it."""


class Points:
    """Called at every point, in any thread; travels to the process that saves, where only faults are told.

    Args:
        injector: Does not return when something is planned.
        passed: Takes note of how far this rank is; cheap.
    """

    def __init__(self, injector: FaultInjector, *, passed: Callable[[str, int], None] = _nobody) -> None:
        self.injector = injector
        self._passed = passed

    def __call__(self, point: FaultPoint, step: int) -> None:
        """The run comes by ``point`` of ``step``."""
        self._passed(point, step)
        self.injector.reached(point, step)

    def __getstate__(self) -> dict[str, Any]:
        return {"injector": self.injector, "_passed": _nobody}
