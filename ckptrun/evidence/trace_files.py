"""Where the trace of a rank lies, and what its items are. Torch-free."""

from enum import StrEnum
from pathlib import Path

__all__ = ["What", "trace_file", "values_file"]


class What(StrEnum):
    """What an item of a trace is."""

    state = "state"
    """All that decides what comes next, in one."""
    stream = "random stream"
    weight = "weight"
    kept = "kept gradient"
    """A gradient that is there when nobody has computed one since."""
    moment = "moment"
    """What the optimizer keeps for a parameter."""
    option = "option"
    """Of a parameter group: the learning rate, ..."""
    scale = "loss scale"
    batch = "batch"
    input = "input"
    output = "output"
    gradient = "gradient"
    reduced = "reduced gradient"
    update = "update"
    """A weight after the optimizer's step."""


def trace_file(run_dir: Path, rank: int) -> Path:
    """Where the trace of ``rank`` lies."""
    return run_dir / "trace" / f"rank_{rank:05d}.jsonl"


def values_file(run_dir: Path, rank: int) -> Path:
    """Where the bits of small tensors in that trace lie."""
    return run_dir / "trace" / f"rank_{rank:05d}.values"
