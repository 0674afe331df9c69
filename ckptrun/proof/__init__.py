"""Comparisons that end in a verdict. Reads states and records; changes neither."""

from ckptrun.proof.reload import Difference, check_loaded, check_reload, check_replicas
from ckptrun.proof.verdict import Check, Status, Verdict, verdict_of

__all__ = ["Check", "Difference", "Status", "Verdict", "check_loaded", "check_reload", "check_replicas", "verdict_of"]
