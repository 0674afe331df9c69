"""Makes a rank of the job fail where that is planned."""

from __future__ import annotations

import json
import os
import resource
import signal
import time

from _ckptrun_probe.plan import Fault, Plan

__all__ = ["Strikes", "Struck"]

_SIGNALS = {"sigkill": signal.SIGKILL, "sigterm": signal.SIGTERM, "sigint": signal.SIGINT, "sigstop": signal.SIGSTOP}

_OF_FILES = ("at_request", "writing", "before_commit", "after_commit", "removing")


class Struck(RuntimeError):
    """Raised by a planned fault of the kind ``exception``."""


class Strikes:
    """The faults of this start. Each strikes a rank once, over all starts.

    Args:
        plan: What is planned.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._left = list(plan.faults)
        self._begun: dict[int, int] = {}
        """Step -> how many of its files have been begun."""

    def at(self, point: str, *, step: int, rank: int) -> None:
        """The job comes by a point: fail, if that is planned."""
        for fault in self._planned(point, step, rank):
            if self._note(fault, step, rank):
                self._strike(fault)

    def limit(self, path: str, *, step: int, rank: int) -> bool:
        """The job begins to write ``path``: let the kernel end it after a share of the bytes, if that is planned.

        Returns:
            Whether it will; then :meth:`unlimit` must be called when the file is written.
        """
        relative = os.path.relpath(path, self._plan.output)
        begun = self._begun[step] = self._begun.get(step, -1) + 1
        for fault in self._planned("writing", step, rank):
            # Names may be drawn anew each time: then it is the file that has its place.
            size = fault.sizes.get(relative, fault.size_at(rank, begun))
            if size is None or not self._note(fault, step, rank):
                continue
            # No handler and no core: the process is gone within the write call that passes the limit.
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
            most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (max(1, int(size * fault.share)), most))
            return True
        return False

    def unlimit(self) -> None:
        """Files may be of any size again."""
        most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    def _planned(self, point: str, step: int, rank: int) -> list[Fault]:
        return [
            fault
            for fault in self._left
            if fault.point == point and rank in fault.ranks and _is_due(fault, step) and self._is_next(fault)
        ]

    def _is_next(self, fault: Fault) -> bool:
        """Whether those that come before it have struck, on whatever rank."""
        before = [other for other in self._plan.faults if other.index < fault.index]
        return all(any(map(os.path.exists, other.files.values())) for other in before)

    def _note(self, fault: Fault, step: int, rank: int) -> bool:
        """Put on disk that it strikes; False if it has before."""
        self._left.remove(fault)
        path = fault.files[str(rank)]
        os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError:
            return False
        os.write(file, json.dumps({"kind": fault.kind, "point": fault.point, "step": step}).encode())
        os.fsync(file)
        os.close(file)
        return True

    def _strike(self, fault: Fault) -> None:
        if fault.kind in _SIGNALS:
            os.kill(os.getpid(), _SIGNALS[fault.kind])
        elif fault.kind == "exception":
            raise Struck(f"ckptrun: planned fault at {fault.point}")
        elif fault.kind == "oom":
            raise MemoryError(f"ckptrun: planned fault at {fault.point}")
        elif fault.kind == "exit":
            os._exit(1)
        elif fault.kind == "hang":
            while True:
                time.sleep(3600)
        else:
            raise ValueError(fault.kind)


def _is_due(fault: Fault, step: int) -> bool:
    """Whether it strikes at a step; what happens to files may happen in the background, some steps later."""
    return fault.step is None or (step >= fault.step if fault.point in _OF_FILES else step == fault.step)
