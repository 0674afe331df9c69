"""Where the probe lies, and how it is told what to do. Torch-free."""

from pathlib import Path

__all__ = ["PLAN_VARIABLE", "site_folder"]

PLAN_VARIABLE = "CKPTRUN_PROBE"
"""The environment variable with the path of a JSON file that says what to do; ``site/_ckptrun_probe/plan.py``."""


def site_folder() -> Path:
    """The folder that goes first on ``PYTHONPATH`` of a job."""
    return Path(__file__).parent / "site"
