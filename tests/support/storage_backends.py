"""Storage that waits, fails or counts, put in place of the real one through ``Location``; and points that kill.

All of it pickles, so that it works in a saving process too.
"""

import errno
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.backends.local import LocalBackend, LocalFileReader, LocalFileWriter
from ckptrun.engine.backends.system_calls import SystemCalls


def on(backend: LocalBackend, path: Path) -> Location:
    """``path`` on ``backend``."""
    return Location(backend, str(path))


class WaitingBackend(LocalBackend):
    """Local files; no shard file is written before ``gate`` exists. ``arrived`` is made when a writer starts to wait."""

    def __init__(self, gate: Path, timeout_s: float = 60) -> None:
        super().__init__()
        self.gate = gate
        self.timeout_s = timeout_s

    @property
    def arrived(self) -> Path:
        return self.gate.with_suffix(".arrived")

    def create(self, path: str, length: int) -> LocalFileWriter:
        if path.endswith(".safetensors"):
            self.arrived.touch()
            wait_for(self.gate, self.timeout_s)
        return super().create(path, length)


def wait_for(path: Path, timeout_s: float = 60) -> None:
    """Return once ``path`` exists."""
    until = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < until, f"{path} was not made within {timeout_s} s"
        time.sleep(0.005)


class FaultyBackend(LocalBackend):
    """Local files; writing a file whose name starts with ``prefix`` fails once some bytes of it are there."""

    def __init__(self, prefix: str, error: int = errno.ENOSPC) -> None:
        super().__init__()
        self.prefix = prefix
        self.error = error

    def create(self, path: str, length: int) -> LocalFileWriter:
        if not Path(path).name.startswith(self.prefix):
            return super().create(path, length)
        return LocalFileWriter(_FailingCalls(self.error, path), path, length)


class _FailingCalls(SystemCalls):
    def __init__(self, error: int, path: str) -> None:
        self._error = error
        self._path = path

    def pwrite(self, descriptor: int, block: memoryview, offset: int) -> int:
        super().pwrite(descriptor, block[:100], offset)
        raise OSError(self._error, os.strerror(self._error), self._path)


class CountingBackend(LocalBackend):
    """Local files; counts the bytes that were read of shard files."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes_read = 0
        self.calls_made: list[str] = []

    def open(self, path: str) -> LocalFileReader:
        return _CountingReader(self, path)

    def create(self, path: str, length: int) -> LocalFileWriter:
        self.calls_made.append(f"write {Path(path).name}")
        return super().create(path, length)

    def rename_folder(self, old: str, new: str) -> None:
        self.calls_made.append(f"rename {Path(old).name} to {Path(new).name}")
        super().rename_folder(old, new)

    def remove(self, path: str) -> None:
        self.calls_made.append(f"remove {Path(path).name}")
        super().remove(path)


class _CountingReader(LocalFileReader):
    def __init__(self, backend: CountingBackend, path: str) -> None:
        super().__init__(backend.calls, path)
        self._backend = backend
        self._counts = path.endswith(".safetensors")

    def read(self, offset: int, buffers: Sequence[memoryview]) -> int:
        count = super().read(offset, buffers)
        if self._counts:
            self._backend.bytes_read += count
        return count


@dataclass
class KillAt:
    """A ``reached`` that ends the process, as the machine's power would, at one point on one rank."""

    point: str
    rank: int

    def __call__(self, point: str) -> None:
        if point == self.point and int(os.environ.get("RANK", "0")) == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)
