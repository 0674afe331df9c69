"""Runs the cells of a sweep, several at a time, each in a process of its own. Torch-free.

A cell that hangs, fails, is killed or fills its memory takes no other one with it. The processes are forked from one
server that has loaded torch; what a cell prints is in ``<sweep>/logs/<cell>.log``.
"""

import contextlib
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from ckptrun.config.crash import CrashKind
from ckptrun.config.fault import FaultKind
from ckptrun.config.job import JobKind
from ckptrun.config.run import Device, RunConfig
from ckptrun.exit_codes import ExitCode
from ckptrun.launch.local import origins, start_fork_server
from ckptrun.launch.own_ranks import environment_of
from ckptrun.launch.supervisor import Signals
from ckptrun.sweep.cell import CellVerdict, LeftByStart, cell_verdict, save_figures
from ckptrun.sweep.record import SweepRecord
from ckptrun.sweep.view import SweepView
from ckptrun.sweep.worker import be_cell

__all__ = ["CellRunner", "PlannedCell", "cells_at_a_time"]

# What judges proofs; it loads torch.
_PRELOAD = ("ckptrun.carry_out", "ckptrun.proof.judge")
_LOOK_SECONDS = 0.25
# Beside what its ranks may take to save.
_MARGIN_SECONDS = 5.0
# For proofs, where nobody has said more.
_LEAST_LIMIT_SECONDS, _OF_LONGEST = 3600.0, 20
_GIB = 2**30
# A process that has loaded torch shares most of that with the one it was forked from.
_BYTES_OF_CELL, _BYTES_OF_RANK = 1 * _GIB, _GIB // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedCell:
    """A cell that makes sense, and has its folder."""

    place: int
    """In the order of the sweep, from 0."""
    name: str
    overrides: tuple[str, ...]
    config: RunConfig
    identity: str
    """Of what decides what comes out, see :func:`~ckptrun.sweep.identity.identity_of`."""


def cells_at_a_time(configs: Sequence[RunConfig]) -> int:
    """How many cells run at a time: ``launch.cells_in_parallel``, or what this machine has cores and memory for."""
    told = [config.launch.cells_in_parallel for config in configs if config.launch.cells_in_parallel is not None]
    if told:
        return min(told)
    if any(config.device is not Device.cpu and _may_have_gpu() for config in configs):
        return 1
    if any(config.job.kind is JobKind.command for config in configs):
        return 1
    most = max((config.ranks for config in configs), default=1)
    return max(1, min(len(os.sched_getaffinity(0)), _free_bytes() // (_BYTES_OF_CELL + most * _BYTES_OF_RANK)))


def _is_any_proof(config: RunConfig) -> bool:
    """Whether the cell proves something beside its own loads: a run alone may take days."""
    return (
        config.job.kind is JobKind.command
        or config.crash.kind is not CrashKind.none
        or config.fault.kind is not FaultKind.none
        or config.proof.full
    )


def _may_have_gpu() -> bool:
    return Path("/dev/nvidiactl").exists()


def _free_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


@dataclass(slots=True, kw_only=True)
class _Running:
    cell: PlannedCell
    left: LeftByStart
    log: Path
    process: BaseProcess
    answer: Connection
    began: float
    is_late: bool = False
    kill_at: float | None = None


class CellRunner:
    """Runs cells.

    Args:
        folder: Of the sweep.
        record: Is told what becomes of each.
        view: Shows it.
        start: Carries out a config; importable, as it is called in other processes.
        parallel: How many at a time.
    """

    def __init__(
        self, folder: Path, record: SweepRecord, view: SweepView, *, start: Callable[[RunConfig], int], parallel: int
    ) -> None:
        self._folder = folder
        self._record = record
        self._view = view
        self._start = start
        self._parallel = parallel
        self._running: list[_Running] = []
        self._seconds: list[float] = []
        """Of the cells that have ended by themselves."""
        self._is_over = False

    def run(self, cells: Iterable[PlannedCell]) -> signal.Signals | None:
        """Run all, unless this process is told to end meanwhile; return what it was told."""
        waiting = deque(cells)
        with Signals() as signals:
            try:
                while self._running or (waiting and not self._is_over):
                    while waiting and len(self._running) < self._parallel and not self._is_over:
                        self._begin(waiting.popleft(), signals)
                    self._wait()
                    self._hear(signals)
                    self._limit()
                    self._view.show(
                        {one.cell.name: time.monotonic() - one.began for one in self._running}, waiting=len(waiting)
                    )
            finally:
                for one in self._running:
                    _kill_all(one)
        return signals.came[0][1] if signals.came else None

    def _begin(self, cell: PlannedCell, signals: Signals) -> None:
        environment = environment_of(cell.config)
        servers = origins(environment, preload=_PRELOAD)
        server = start_fork_server(environment, in_proof=True)
        server.wait(lambda: bool(signals.came))
        if signals.came:
            self._is_over = True
            return
        self._record.begin(cell.place, cell.name, cell.overrides, identity=cell.identity)
        self._view.began(cell.place, cell.name)
        log = self._folder / "logs" / f"{cell.name}.log"
        log.unlink(missing_ok=True)
        left = LeftByStart(cell.config.run_dir)
        here, there = Pipe(duplex=False)
        given = (self._start, cell.config, dict(os.environ), servers, log, there)
        process = server.process(be_cell, given, name=cell.name)
        process.start()
        there.close()
        began = time.monotonic()
        running = _Running(cell=cell, left=left, log=log, process=process, answer=here, began=began)
        self._running.append(running)

    def _wait(self) -> None:
        wait([one.process.sentinel for one in self._running], timeout=_LOOK_SECONDS)
        for one in [one for one in self._running if one.process.exitcode is not None]:
            self._running.remove(one)
            self._end(one)

    def _hear(self, signals: Signals) -> None:
        """Pass on, once, that this process is told to end."""
        if not signals.came or self._is_over:
            return
        self._is_over = True
        for one in self._running:
            _tell(one, signals.came[0][1])

    def _limit(self) -> None:
        now = time.monotonic()
        for one in self._running:
            if one.kill_at is not None and now > one.kill_at:
                _kill_all(one)
            elif one.kill_at is None and now - one.began > self._most_seconds(one.cell.config):
                one.is_late = True
                _tell(one, signal.SIGTERM)

    def _most_seconds(self, config: RunConfig) -> float:
        """How long a cell may take."""
        if config.sweep.cell_seconds is not None:
            return config.sweep.cell_seconds
        if not _is_any_proof(config) or not self._seconds:
            return math.inf
        return max(_LEAST_LIMIT_SECONDS, _OF_LONGEST * max(self._seconds))

    def _end(self, one: _Running) -> None:
        code, why = _answer_of(one)
        verdict, reason = cell_verdict(code, one.left) if not why else (CellVerdict.failed, why)
        if one.is_late:
            limit = self._most_seconds(one.cell.config)
            verdict, reason = (
                CellVerdict.failed,
                f"took longer than sweep.cell_seconds={limit:g}; {_last_line(one.log)}",
            )
        elif self._is_over:
            verdict, reason = CellVerdict.failed, "was interrupted"
        seconds = time.monotonic() - one.began
        ended = self._record.end(
            one.cell.place,
            seconds=seconds,
            exit_code=code,
            verdict=verdict,
            reason=reason,
            save=save_figures(one.cell.config.run_dir),
        )
        self._view.ended(one.cell.place, ended, one.log)
        if not one.is_late:
            self._seconds.append(seconds)


def _answer_of(one: _Running) -> tuple[int, str]:
    """The exit code of a cell that has ended, and why, where it has said so or could not any more."""
    try:
        code, reason = one.answer.recv() if one.answer.poll() else (None, "")
    except (EOFError, OSError):
        code, reason = None, ""
    one.answer.close()
    if code is not None:
        return code, reason
    ended = one.process.exitcode or 0
    how = f"by {signal.Signals(-ended).name}" if ended < 0 else f"with exit code {ended}"
    return ExitCode.failed, f"the process of the cell ended {how} before it was done; see {one.log}"


def _tell(one: _Running, number: signal.Signals) -> None:
    """Let a cell end, which its ranks may still save before."""
    one.kill_at = time.monotonic() + one.cell.config.launch.stop_seconds + _MARGIN_SECONDS
    if one.process.pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.process.pid, number)


def _kill_all(one: _Running) -> None:
    """End a cell and everything that it has started and that has not left its process group."""
    if one.process.pid is not None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(one.process.pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            os.kill(one.process.pid, signal.SIGKILL)


def _last_line(log: Path) -> str:
    """What a cell has printed last."""
    try:
        lines = log.read_text(errors="replace").split("\n")
    except OSError:
        lines = []
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return f"the last that it said: {last}" if last else "it has said nothing"
