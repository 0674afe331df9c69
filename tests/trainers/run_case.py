"""Proves one job as the command line would."""

import shlex
from pathlib import Path

from ckptrun import prove
from ckptrun.evidence.verdict import Verdict
from tests.trainers.cases import Case


def prove_case(case: Case, folder: Path) -> Verdict:
    """Prove ``case`` in ``folder``."""
    command = ",".join(f"'{part}'" for part in case.command)
    resume = [f'job.resume="{shlex.join([*case.command, *case.resume])}"'] if case.resume else []
    fault = [] if any(text.startswith("fault=") for text in case.overrides) else ["fault=sigkill"]
    job = ["job=command", f"job.command=[{command}]", *resume, "job.timeout_seconds=600"]
    return prove([*fault, *case.overrides, *job, f"run.dir={folder}"])
