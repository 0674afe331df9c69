"""Where in a run folder each rank writes down what it did. Torch-free.

::

    <run>/ledger/rank_00000.jsonl      each step, see ``ledger``
    <run>/trace/rank_00000.jsonl       each operation of the steps that are watched, see ``trace``
    <run>/trace/rank_00000.values      the bits of small tensors in that trace
"""

from pathlib import Path

from ckptrun.rank_names import rank_name

__all__ = ["ledger_file", "trace_file", "values_file"]


def ledger_file(run_dir: Path, rank: int) -> Path:
    """Where the ledger of ``rank`` lies."""
    return run_dir / "ledger" / f"{rank_name(rank)}.jsonl"


def trace_file(run_dir: Path, rank: int) -> Path:
    """Where the trace of ``rank`` lies."""
    return run_dir / "trace" / f"{rank_name(rank)}.jsonl"


def values_file(run_dir: Path, rank: int) -> Path:
    """Where the bits of small tensors in that trace lie."""
    return run_dir / "trace" / f"{rank_name(rank)}.values"
