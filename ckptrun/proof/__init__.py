"""Comparisons that end in a verdict. Reads states and records; changes neither."""

from ckptrun.proof.ledger import Ledger
from ckptrun.proof.planned import check_faults
from ckptrun.proof.reload import Difference, check_loaded, check_reload, check_replicas, check_resumed
from ckptrun.proof.trace import Tracer, Watched
from ckptrun.proof.trajectory import check_final_state, check_repeats, check_trajectory
from ckptrun.proof.verdict import Check, Status, Verdict, verdict_of

__all__ = [
    "Check",
    "Difference",
    "Ledger",
    "Status",
    "Tracer",
    "Verdict",
    "Watched",
    "check_faults",
    "check_final_state",
    "check_loaded",
    "check_reload",
    "check_repeats",
    "check_replicas",
    "check_resumed",
    "check_trajectory",
    "verdict_of",
]
