"""Processes that have imported what the job imports, one for each of its programs, that starts of it are forked from.

Torch-free.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ckptrun.crash.trace import LOOKS, strace
from ckptrun.files import write_json
from ckptrun.probe import PLAN_VARIABLE

__all__ = ["Program", "WarmServers", "read_programs"]

_MOST_SECONDS = 120.0
_LOOK_SECONDS = 0.05
_CODE = "from _ckptrun_probe.begin import serve_warm; serve_warm()"
# Of one start, or of one rank of it.
_OWN = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "MASTER_PORT")


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What a Python process of the job was started as, and what it came to import."""

    key: str
    executable: str
    environment: Mapping[str, str]
    modules: Sequence[str]


def read_programs(records: Path) -> list[Program]:
    """Return the programs of a recorded run, each once, as the process that imported most had it.

    Args:
        records: The folder that its processes wrote to.
    """
    found: dict[str, Program] = {}
    for file in sorted(records.glob("*.jsonl")):
        told: dict[str, Any] = {}
        for line in file.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event["event"] in ("program", "modules"):
                    told |= event
        key = told.get("key")
        if key is None or "modules" not in told:
            continue
        known = found.get(key)
        if known is None or len(known.modules) < len(told["modules"]):
            found[key] = Program(
                key=key,
                executable=told["executable"],
                environment=told["environment"],
                modules=told["modules"],
            )
    return list(found.values())


class WarmServers:
    """Started within a ``with``; gone after it.

    Args:
        programs: Of the job.
        folder: For what they are told and what they look at; made.
        output: The folder that the job writes to.
        cwd: Where the job is started.
    """

    def __init__(self, programs: Sequence[Program], folder: Path, *, output: Path, cwd: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._output = output
        self._cwd = cwd
        self._sockets = Path(tempfile.mkdtemp(prefix="ckptrun-"))
        self._started: list[subprocess.Popen[bytes]] = []
        self.traces: list[Path] = []
        """What strace writes of each."""

    @property
    def is_ready(self) -> bool:
        """Whether there is one for each program."""
        return bool(self._programs) and len(self.places) == len(self._programs)

    @property
    def places(self) -> dict[str, str]:
        """Program -> socket, of those that wait for jobs."""
        found = {}
        for number, (program, process) in enumerate(zip(self._programs, self._started, strict=False)):
            if process.poll() is None and self._place(number).exists():
                found[program.key] = str(self._place(number))
        return found

    def _place(self, number: int) -> Path:
        return self._sockets / str(number)

    def __enter__(self) -> "WarmServers":
        try:
            for number, program in enumerate(self._programs):
                self._start(number, program)
            self._wait()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end()

    def _start(self, number: int, program: Program) -> None:
        folder = self._folder / f"program_{number}"
        records, plan, trace = folder / "probe", folder / "plan.json", folder / "looks"
        records.mkdir(parents=True, exist_ok=True)
        told = {"records": str(records), "output": str(self._output), "faults": [], "first_step": 0}
        server = {"place": str(self._place(number)), "modules": list(program.modules)}
        write_json(plan, {**told, "digest_every_steps": 1, "deterministic": False, "server": server})
        environment = {name: value for name, value in program.environment.items() if name not in _OWN}
        with (folder / "log").open("wb") as log:
            self._started.append(
                subprocess.Popen(
                    [*strace(trace, LOOKS), program.executable, "-c", _CODE],
                    cwd=self._cwd,
                    env={**environment, PLAN_VARIABLE: str(plan)},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
        self.traces.append(trace)

    def _wait(self) -> None:
        """Until each is ready, has ended, or takes too long: then starts do without it."""
        until = time.monotonic() + _MOST_SECONDS
        while time.monotonic() < until:
            waiting = [n for n, process in enumerate(self._started) if process.poll() is None]
            if all(self._place(number).exists() for number in waiting):
                return
            time.sleep(_LOOK_SECONDS)

    def _end(self) -> None:
        for process in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(self._sockets, ignore_errors=True)
