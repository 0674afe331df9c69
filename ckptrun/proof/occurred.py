"""Gathers what occurred in a proof, for what the verdict says of the rest. Reads files only."""

import contextlib
from typing import Any

from ckptrun.checks.not_exercised import Occurred
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import step_folder
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import read_manifest
from ckptrun.errors import CheckpointError
from ckptrun.evidence.run_folder import ledger_file
from ckptrun.files import read_lines
from ckptrun.proof.material import Material

__all__ = ["occurred"]


def occurred(material: Material) -> Occurred:
    """Return the facts of a proof whose legs are over."""
    root = material.run.checkpoints
    steps = list_committed(root)
    there = {str(locate(step_folder(root, step))) for step in steps}
    committed = {str(locate(folder)) for start in material.starts for folder in start.committed}
    resumed = next((start.resumed_from for start in material.resumes), None)
    at_resume = None if resumed is None else material.kept.get(str(locate(resumed)), resumed)
    return Occurred(
        steps=material.subject.steps,
        precision=material.subject.precision,
        keep_last=material.subject.keep_last,
        has_controls=material.has_controls,
        lines=read_lines(ledger_file(material.reference.folder, 0)),
        starts=material.starts,
        fired=material.fired,
        removed=len(committed - there),
        at_resume=_values(at_resume),
        at_end=_values(step_folder(root, steps[-1]) if steps else None),
    )


def _values(folder: str | None) -> dict[str, Any]:
    """The plain leaves of a checkpoint; none of one that is gone or damaged."""
    with contextlib.suppress(CheckpointError, OSError):
        if folder is not None:
            leaves = read_manifest(locate(folder)).leaves.values()
            return {leaf.name: leaf.value for leaf in leaves if not leaf.is_tensor}
    return {}
