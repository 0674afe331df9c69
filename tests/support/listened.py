"""Runs pieces of code as jobs with the probe, and reads what it has heard."""

import json
import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptrun.foreign.records import Heard, read_heard
from ckptrun.probe import PLAN_VARIABLE, site_folder
from tests.support.job_python import JOB_PYTHON

_FORKS = """
import atexit, json, os, sys, traceback
import torch, numpy, safetensors.torch
from _ckptrun_probe import begin
from _ckptrun_probe.plan import Plan
from _ckptrun_probe.record import Record
from _ckptrun_probe.strikes import Strikes
for name, code in json.load(open(sys.argv[1])).items():
    pid = os.fork()
    if pid == 0:
        folder = os.path.join(sys.argv[2], name)
        out = os.open(os.path.join(folder, "printed"), os.O_WRONLY | os.O_CREAT)
        os.dup2(out, 1), os.dup2(out, 2)
        listener = begin._listener
        listener.plan = Plan(os.path.join(folder, "plan.json"))
        listener.record, listener.strikes = Record(listener.plan.records), Strikes(listener.plan)
        os.chdir(folder)
        code_of_end = 0
        try:
            exec(code, {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            code_of_end = 1
        sys.stdout.flush()
        atexit._run_exitfuncs()
        os._exit(code_of_end)
    _, status = os.waitpid(pid, 0)
    with open(os.path.join(sys.argv[2], name, "status"), "w") as file:
        file.write(str(os.waitstatus_to_exitcode(status)))
"""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What came of a piece of code."""

    folder: Path
    exit_code: int
    printed: str

    @property
    def heard(self) -> Heard:
        """What the probe has heard."""
        (found,) = read_heard(self.folder / "records")
        return found


def write_plan(folder: Path, *, output: Path | None = None, faults: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Write what the probe is told, in ``folder``."""
    (folder / "records").mkdir(parents=True, exist_ok=True)
    facts = {
        "records": str(folder / "records"),
        "output": str(output or folder / "output"),
        "faults": [{"files": {"0": str(folder / "struck.json")}, **fault} for fault in faults],
        "first_step": 0,
        "digest_every_steps": 1,
        "deterministic": False,
    }
    plan = folder / "plan.json"
    plan.write_text(json.dumps(facts))
    return plan


def listen(plan: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a proof does."""
    path = os.pathsep.join([str(site_folder()), environment.pop("PYTHONPATH", os.environ.get("PYTHONPATH", ""))]).strip(
        os.pathsep
    )
    own = {"OMP_NUM_THREADS": "1", PLAN_VARIABLE: str(plan), "PYTHONPATH": path}
    return subprocess.run(argv, env={**os.environ, **own, **environment}, capture_output=True, text=True, check=False)


def listen_to_pieces(
    folder: Path, pieces: Mapping[str, str], faults: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Piece]:
    """Run pieces of code, each in a process of its own that is forked from one with torch."""
    for name in pieces:
        own = [faults[name]] if faults is not None and name in faults else []
        write_plan(folder / name, output=folder, faults=own)
    (folder / "pieces.json").write_text(json.dumps(dict(pieces)))
    plan = write_plan(folder / "forks", output=folder)
    ended = listen(plan, JOB_PYTHON, "-c", _FORKS, str(folder / "pieces.json"), str(folder))
    assert ended.returncode == 0, ended.stderr
    return {
        name: Piece(
            folder=folder / name,
            exit_code=int((folder / name / "status").read_text()),
            printed=(folder / name / "printed").read_text(),
        )
        for name in pieces
    }
