"""Strikes where it was planned: at (point, step, rank), once over all restarts.

Told of every point of a run on every rank, from the training thread and from the one that saves, and in the process
that saves beside a rank; there it strikes the rank too. Must not use collectives: other ranks may be gone already.
"""

import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, assert_never

from ckptrun.config.fault import FaultKind, FaultPoint, Reached, no_point
from ckptrun.engine.backends.interface import Location
from ckptrun.engine.layout import is_shard_file_name, step_name
from ckptrun.errors import InternalError
from ckptrun.fault.plan import PlannedFault
from ckptrun.fault.record import FaultRecord

__all__ = ["FaultInjector"]

_RAISED = {FaultKind.exception: RuntimeError, FaultKind.oom: MemoryError}
_ANSWERED_BY_LOOP = frozenset({FaultKind.sigterm, FaultKind.sigint})


class FaultInjector:
    """The faults of one rank in one start. Pickles to the process that saves.

    Args:
        faults: Those that may fire in this start.
        run_dir: Where it is recorded that they have.
        rank: Global rank.
        checkpoints: What holds them; None where nothing is saved, so that no file is lost.
        passed: Told of each point before anything strikes, by which others see how far this rank is; cheap. It does
            not travel to the process that saves.
    """

    def __init__(
        self,
        faults: Sequence[PlannedFault],
        *,
        run_dir: Path,
        rank: int,
        checkpoints: Location | None = None,
        passed: Reached = no_point,
    ) -> None:
        self._all = tuple(faults)
        self._own = tuple(fault for fault in faults if rank in fault.ranks)
        self._record = FaultRecord(run_dir)
        self._rank = rank
        self._process = os.getpid()
        self._checkpoints = checkpoints
        self._passed = passed

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_passed": no_point}

    def reached(self, point: FaultPoint, step: int) -> None:
        """The run comes by ``point`` of ``step``: strike, if something is planned here.

        Returns when nothing is, or when the run shall go on. What strikes at ``writing`` waits for its byte: see
        ``ckptrun.fault.storage``.
        """
        self._passed(point, step)
        for fault in self._own:
            if fault.point is point and fault.step in (None, step) and not _strikes_bytes(fault):
                self.strike(fault, step)

    def of_bytes(self, step: int) -> PlannedFault | None:
        """What strikes this rank's bytes in the save of ``step``."""
        return next((fault for fault in self._own if _strikes_bytes(fault) and fault.step == step), None)

    def settles_before(self, step: int) -> bool:
        """Whether saves in flight shall end before ``step``; the same on all ranks.

        A kill within the loop goes back to a checkpoint that must not depend on how fast the disk was: what a kill does
        to a save in flight is what the points of a save are for. A signal that strikes in a save is answered by the
        loop, and at which step it is must not depend on the disk either: it is the step after the one that is saved.
        """
        return any(step == _settled_step(fault) for fault in self._all)

    def note(self, fault: PlannedFault, step: int) -> bool:
        """Record that ``fault`` strikes; False when it has before."""
        return self._record.note(fault, rank=self._rank, step=step)

    def strike(self, fault: PlannedFault, step: int) -> None:
        """Record and do it. What is left of the process after a signal goes on until the signal arrives."""
        if not self.note(fault, step):
            return
        message = f"planned fault: {fault}"
        match fault.kind:
            case FaultKind.exception | FaultKind.oom:
                raise _RAISED[fault.kind](message)
            case FaultKind.hang if self._is_rank:
                threading.Event().wait()
            case FaultKind.lost_file:
                self._lose_file(fault, step)
            case FaultKind.sigterm:
                os.kill(self._process, signal.SIGTERM)
            case FaultKind.sigint:
                self._interrupt(message)
            case FaultKind.hang | FaultKind.sigstop:
                self._stop_process()
            case FaultKind.sigkill | FaultKind.exit:
                self._end(fault.kind)
            case (
                FaultKind.torn_write
                | FaultKind.bit_flip
                | FaultKind.slow_storage
                | FaultKind.disk_full
                | FaultKind.io_error
                | FaultKind.none
                | FaultKind.chaos
            ):
                raise InternalError(f"{fault.kind} strikes no process.")
            case _:
                assert_never(fault.kind)

    @property
    def _is_rank(self) -> bool:
        return os.getpid() == self._process

    def _lose_file(self, fault: PlannedFault, step: int) -> None:
        """Remove a file of the checkpoint of ``step``, which has just become one."""
        if self._checkpoints is not None:
            folder = self._checkpoints.child(step_name(step))
            files = [name for name in folder.backend.list_names(folder.path) if is_shard_file_name(name)]
            folder.backend.remove(folder.child(files[fault.seed % len(files)]).path)

    def _interrupt(self, message: str) -> None:
        """Interrupt the rank's main thread, here and now; the save that comes by here fails.

        Whether it came to its end while the rank ends would depend on who is quicker.
        """
        is_main = self._is_rank and threading.current_thread() is threading.main_thread()
        if is_main:
            # It is blocked while a save is handed over.
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        os.kill(self._process, signal.SIGINT)
        if not is_main:
            raise RuntimeError(message)

    def _stop_process(self) -> None:
        os.kill(self._process, signal.SIGSTOP)
        if not self._is_rank:
            # The rank that would wait for this process does not answer any more; neither does this one.
            os.kill(os.getpid(), signal.SIGSTOP)

    def _end(self, kind: FaultKind) -> NoReturn:
        """End the rank: it exits by itself if it shall and this is it, and is killed otherwise."""
        if kind is FaultKind.exit and self._is_rank:
            os._exit(1)
        os.kill(self._process, signal.SIGKILL)
        if not self._is_rank:
            os.kill(os.getpid(), signal.SIGKILL)
        while True:
            time.sleep(1)


def _settled_step(fault: PlannedFault) -> int | None:
    """The step that saves in flight end before, so that ``fault`` is repeatable."""
    if not fault.point.is_of_save:
        return fault.step
    return fault.step + 1 if fault.step is not None and fault.kind in _ANSWERED_BY_LOOP else None


def _strikes_bytes(fault: PlannedFault) -> bool:
    return fault.point is FaultPoint.writing
