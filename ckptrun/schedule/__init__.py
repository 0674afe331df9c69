"""How the learning rate changes from step to step; the ``schedule`` component of the state."""

from ckptrun.schedule.curves import Curve, curve
from ckptrun.schedule.scheduler import StepSchedule, build_schedule

__all__ = ["Curve", "StepSchedule", "build_schedule", "curve"]
