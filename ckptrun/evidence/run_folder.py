"""What lies in a run folder, and under which name. Torch-free.

The names are here for all rooms that stand above. Some that stand below spell one themselves: ``checkpoints``
(``config/run.py``, ``formats/open_source.py``) and ``faults`` (``fault/record.py``).

::

    <run>/config.yaml                  the resolved config
    <run>/environment.json             what it ran on
    <run>/events.jsonl                 what happened, see ``events`` and ``starts``
    <run>/verdict.json                 what all checks came to, see ``verdict``
    <run>/report.html                  the same for people, see ``ckptrun.report``; of a proof
    <run>/summary.md                   the same in short, for CI
    <run>/ledger/rank_00000.jsonl      each step, see ``ledger``
    <run>/trace/rank_00000.jsonl       each operation of the steps that are watched, see ``trace``
    <run>/trace/rank_00000.values      the bits of small tensors in that trace
    <run>/tensorboard/                 curves
    <run>/checkpoints/                 unless checkpoint.path says where
    <run>/faults/                      what has fired, see ``fault.record``
    <run>/run.lock                     held while it runs

A proof leaves more, see :mod:`ckptrun.run.leg`.
"""

from pathlib import Path

from ckptrun.rank_names import rank_name

__all__ = [
    "CHECKPOINTS",
    "CONFIG",
    "ENVIRONMENT",
    "EVENTS",
    "FAULTS",
    "FILES",
    "LEDGER",
    "LOGS",
    "MARKDOWN",
    "PROOF",
    "PROOF_LOCK",
    "PROOF_MARK",
    "REPORT",
    "RUN_LOCK",
    "TENSORBOARD",
    "TRACE",
    "VERDICT",
    "ledger_file",
    "trace_file",
    "values_file",
]

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
EVENTS = "events.jsonl"
VERDICT = "verdict.json"
REPORT = "report.html"
MARKDOWN = "summary.md"
LEDGER = "ledger"
TRACE = "trace"
TENSORBOARD = "tensorboard"
CHECKPOINTS = "checkpoints"
FAULTS = "faults"
RUN_LOCK = "run.lock"
PROOF_LOCK = "proof.lock"
"""Held while a proof runs, of which the run is a part."""
PROOF_MARK = "proof.json"
"""Says that the folder belongs to a proof, which may do it anew."""
PROOF = "proof"
"""The folders of the runs beside the one under proof, and what the proof notes for itself."""
LOGS = "logs"
"""What ranks of a proof printed."""
FILES = "files"
"""What ranks of a proof opened outside of the run folder."""


def ledger_file(run_dir: Path, rank: int) -> Path:
    """Where the ledger of ``rank`` lies."""
    return run_dir / LEDGER / f"{rank_name(rank)}.jsonl"


def trace_file(run_dir: Path, rank: int) -> Path:
    """Where the trace of ``rank`` lies."""
    return run_dir / TRACE / f"{rank_name(rank)}.jsonl"


def values_file(run_dir: Path, rank: int) -> Path:
    """Where the bits of small tensors in that trace lie."""
    return run_dir / TRACE / f"{rank_name(rank)}.values"
