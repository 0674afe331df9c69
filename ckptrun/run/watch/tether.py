"""What ties a rank to the launcher that has started it: words both ways, and how far the rank is. Torch-free.

A rank is not told by SIGTERM: that comes from outside, perhaps at the same moment, perhaps twice, and means one thing
only. Nor does its exit code say that it has done its part: user code may end a process with 0 at any time.
"""

import contextlib
import os
import struct
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path

__all__ = ["Passed", "Tether", "Word", "read_passed"]

_PASSED = struct.Struct("<QQQ32s")


class Word(StrEnum):
    """What a rank is told."""

    stop = "stop"
    """Save at the next step boundary, and end. Said again it means nothing."""
    end = "end"
    """A peer is gone and nothing can be saved: end."""


@dataclass(frozen=True, slots=True)
class Passed:
    """How far a rank is."""

    number: int = 0
    """Of points, over all steps; 0: none."""
    begun: int = 0
    """Steps that it has begun since it was started."""
    step: int = 0
    point: str = ""


class Tether:
    """A rank's end. Pickles to the process of the rank.

    Args:
        connection: To the launcher.
        progress: A file of this rank alone, where it notes how far it is.
    """

    def __init__(self, connection: Connection, progress: Path) -> None:
        self._connection = connection
        self._progress = progress
        self._file = -1
        self._number = self._begun = 0

    def fileno(self) -> int:
        """Readable when there is a word, or when nobody is left to say one."""
        return self._connection.fileno()

    def read(self) -> Word | None:
        """The next word; None: the launcher is gone. Waits for it."""
        try:
            return Word(self._connection.recv_bytes().decode())
        except (EOFError, OSError):
            return None

    def passed(self, point: str, step: int) -> None:
        """Note that the rank comes by ``point``."""
        if self._file < 0:
            self._file = os.open(self._progress, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._number += 1
        self._begun += point == "before_step"
        with contextlib.suppress(OSError):
            os.pwrite(self._file, _PASSED.pack(self._number, self._begun, max(0, step), str(point).encode()[:32]), 0)

    def done(self, exit_code: int) -> None:
        """Say that the rank has done its part, whatever becomes of its process now."""
        with contextlib.suppress(OSError):
            self._connection.send_bytes(str(int(exit_code)).encode())


def read_passed(progress: Path) -> Passed:
    """How far the rank is that writes to ``progress``."""
    try:
        number, begun, step, point = _PASSED.unpack(progress.read_bytes())
    except (OSError, struct.error):
        return Passed()
    return Passed(number, begun, step, point.rstrip(b"\0").decode())
