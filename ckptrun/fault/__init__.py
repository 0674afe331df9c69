"""Planned failures: which, where, and what happens. Must not know the trainer, nor what a proof makes of them."""

from ckptrun.fault.injector import FaultInjector
from ckptrun.fault.plan import PlannedFault, armed, plan_faults, stop_steps
from ckptrun.fault.record import FaultRecord, Fired
from ckptrun.fault.storage import with_faults

__all__ = ["FaultInjector", "FaultRecord", "Fired", "PlannedFault", "armed", "plan_faults", "stop_steps", "with_faults"]
