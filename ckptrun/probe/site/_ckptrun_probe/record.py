"""The file that a process of the job writes: a JSON line per event, each with one call, so that a kill cuts none."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["Record", "quietly"]

_Returns = TypeVar("_Returns")


class Record:
    """What this process says; made when it says something first.

    Args:
        folder: There already.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._file = -1
        self.errors = 0
        os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """A forked process has a file of its own."""
        self._file = -1

    def retarget(self, folder: str) -> None:
        """From here on this process is another one's child, and says what it does elsewhere."""
        self._folder, self._file, self.errors = folder, -1, 0

    def event(self, kind: str, **facts: Any) -> None:
        """Write a line."""
        if self._file < 0:
            name = f"{time.time_ns():020d}-{os.getpid()}.jsonl"
            self._file = os.open(
                os.path.join(self._folder, name),  # noqa: PTH118
                os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC,
                0o666,
            )
            self._write({"event": "process", "pid": os.getpid(), "python": _interpreter(), **_who()})
        self._write({"event": kind, **facts})

    def _write(self, facts: dict[str, Any]) -> None:
        os.write(self._file, json.dumps(facts).encode() + b"\n")

    def error(self, where: str) -> None:
        """Note that the probe itself has failed in ``where``; to be called while that is handled."""
        self.errors += 1
        if self.errors <= 10:
            try:
                self.event("probe_error", where=where, text=traceback.format_exc(limit=8))
            except OSError:
                return


def _interpreter() -> str:
    return f"{sys.executable} (Python {sys.version.split()[0]})"


def _who() -> dict[str, Any]:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK")
    return {"argv": sys.argv[:3], "environment": {name: os.environ[name] for name in names if name in os.environ}}


def quietly(record: Record, where: str, call: Callable[..., _Returns], *arguments: Any) -> _Returns | None:
    """Call, and let nothing that goes wrong reach the job."""
    try:
        return call(*arguments)
    except Exception:  # noqa: BLE001  # whatever the probe does not understand is none of the job's business
        record.error(where)
        return None
