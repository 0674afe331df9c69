"""Storage that waits, fails or counts, put in place of the real one through ``Location``; and points that kill.

All of it pickles, so that it works in a saving process too.
"""

import errno
import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ckptrun.checkpoint.backend import LocalBackend, Location


def on(backend: LocalBackend, path: Path) -> Location:
    """``path`` on ``backend``."""
    return Location(backend, str(path))


@dataclass
class WaitingBackend(LocalBackend):
    """Local files; no shard file is written before ``gate`` exists. ``arrived`` is made when a writer starts to wait."""

    gate: Path
    timeout_s: float = 60

    @property
    def arrived(self) -> Path:
        return self.gate.with_suffix(".arrived")

    def write_file(self, path: str, blocks: Iterable[memoryview]) -> None:
        if path.endswith(".safetensors"):
            self.arrived.touch()
            wait_for(self.gate, self.timeout_s)
        super().write_file(path, blocks)


def wait_for(path: Path, timeout_s: float = 60) -> None:
    """Return once ``path`` exists."""
    until = time.monotonic() + timeout_s
    while not path.exists():
        assert time.monotonic() < until, f"{path} was not made within {timeout_s} s"
        time.sleep(0.005)


@dataclass
class FaultyBackend(LocalBackend):
    """Local files; writing a file whose name starts with ``prefix`` fails once some bytes of it are there."""

    prefix: str
    error: int = errno.ENOSPC

    def write_file(self, path: str, blocks: Iterable[memoryview]) -> None:
        if not Path(path).name.startswith(self.prefix):
            super().write_file(path, blocks)
            return
        with Path(path).open("wb") as file:
            file.write(next(iter(blocks))[:100])
        raise OSError(self.error, os.strerror(self.error), path)


class CountingBackend(LocalBackend):
    """Local files; counts the bytes that were read of shard files."""

    def __init__(self) -> None:
        self.bytes_read = 0
        self.calls: list[str] = []

    def read_into(self, path: str, offset: int, target: memoryview) -> int:
        count = super().read_into(path, offset, target)
        if path.endswith(".safetensors"):
            self.bytes_read += count
        return count

    def write_file(self, path: str, blocks: Iterable[memoryview]) -> None:
        self.calls.append(f"write {Path(path).name}")
        super().write_file(path, blocks)

    def rename_folder(self, old: str, new: str) -> None:
        self.calls.append(f"rename {Path(old).name} to {Path(new).name}")
        super().rename_folder(old, new)

    def remove(self, path: str) -> None:
        self.calls.append(f"remove {Path(path).name}")
        super().remove(path)


@dataclass
class KillAt:
    """A ``reached`` that ends the process, as the machine's power would, at one point on one rank."""

    point: str
    rank: int

    def __call__(self, point: str) -> None:
        if point == self.point and int(os.environ.get("RANK", "0")) == self.rank:
            os.kill(os.getpid(), signal.SIGKILL)
