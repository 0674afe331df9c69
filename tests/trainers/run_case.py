"""Proves one job as the command line would."""

import json
import shlex
from collections import Counter
from pathlib import Path

from ckptrun import prove
from ckptrun.evidence.run_folder import VERDICT
from ckptrun.evidence.verdict import Verdict
from tests.trainers.cases import Case


def prove_case(case: Case, folder: Path) -> Verdict:
    """Prove ``case`` in ``folder``."""
    command = ",".join(f"'{part}'" for part in case.command)
    resume = [f'job.resume="{shlex.join([*case.command, *case.resume])}"'] if case.resume else []
    is_planned = any(text.startswith(("fault=", "crash=")) for text in case.overrides)
    fault = [] if is_planned else ["fault=sigkill"]
    job = ["job=command", f"job.command=[{command}]", *resume, "job.timeout_seconds=600"]
    return prove([*fault, *case.overrides, *job, f"run.dir={folder}"])


def states_of(folder: Path) -> Counter[str]:
    """What the crash states come to that were judged in ``folder``, and how many of each."""
    groups = json.loads((folder / VERDICT).read_text())["crash_states"]
    return sum((Counter({group["came_to"]: group["states"]}) for group in groups), Counter())
