"""One run folder, one run: a lock that the death of its owner releases."""

import fcntl
import functools
import os
import socket
import time
from pathlib import Path
from typing import IO

from ckptrun.errors import ConfigError
from ckptrun.evidence.run_folder import RUN_LOCK

__all__ = ["RunLock"]


class RunLock:
    """Held by rank 0 for as long as the run lives. The file stays; what counts is the kernel's lock on it.

    Args:
        folder: The run folder, which exists.
        name: Of the file: a run and the proof that it belongs to hold one each.

    Raises:
        ConfigError: Another process holds it; names host, pid and since when.
    """

    def __init__(self, folder: Path, name: str = RUN_LOCK) -> None:
        path = folder / name
        self._file: IO[str] = path.open("a+")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._file.seek(0)
            owner = self._file.read().strip() or "unknown"
            self._file.close()
            raise ConfigError(
                f"Another process is running in {folder}: {owner}. Wait for it, end it, or give this run a folder of "
                "its own: run.name=..."
            ) from error
        self._file.truncate(0)
        started = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        self._file.write(f"host {socket.gethostname()}, process {os.getpid()}, since {started}\n")
        self._file.flush()

        _HELD.add(self._file)
        _close_in_children()

    def close(self) -> None:
        """Let go of it."""
        _HELD.discard(self._file)
        self._file.close()


_HELD: set[IO[str]] = set()


@functools.cache
def _close_in_children() -> None:
    """A child of fork() that outlives its parent would hold the lock on."""
    os.register_at_fork(after_in_child=_let_go)


def _let_go() -> None:
    for file in _HELD:
        file.close()
    _HELD.clear()
