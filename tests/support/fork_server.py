"""The one fork server of the test session, which every rank of every test comes from.

Its output lies in files from the start: ranks inherit where the server writes, whatever pytest captures at the time.
"""

import fcntl
import functools
import multiprocessing
import os
import sys
import tempfile
from typing import IO, Any

from ckptrun.launch.local import _SERVERS, start_fork_server
from ckptrun.launch.own_ranks import environment_of
from tests.support.configs import config_of

__all__ = ["CONTEXT", "Printed", "rank_streams"]


class _Context(type(multiprocessing.get_context("forkserver"))):  # type: ignore[misc]
    """As multiprocessing's, with processes from our server, which has all modules loaded."""

    def Process(self, **what: Any) -> Any:  # multiprocessing's name for it
        rank_streams()
        return next(iter(_SERVERS.values())).process(**what)


CONTEXT = _Context()


@functools.cache
def rank_streams() -> tuple[IO[bytes], IO[bytes]]:
    """Start the server unless it runs; return the files that hold all that ranks print, output and errors."""
    files = (tempfile.TemporaryFile(), tempfile.TemporaryFile())  # noqa: SIM115  # they live as long as the session
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(1), os.dup(2)]
    try:
        for file, number in zip(files, (1, 2), strict=True):
            # Ranks append, so that a seek of the reader does not move where they write.
            fcntl.fcntl(file.fileno(), fcntl.F_SETFL, os.O_APPEND)
            os.dup2(file.fileno(), number)
        # The one that proofs and other runs have in common.
        start_fork_server(environment_of(config_of()), in_proof=True)
    finally:
        for copy, number in zip(saved, (1, 2), strict=True):
            os.dup2(copy, number)
            os.close(copy)
    return files


class Printed:
    """What ranks print from its making on."""

    def __init__(self) -> None:
        self._begins = [stream.seek(0, os.SEEK_END) for stream in rank_streams()]

    def read(self) -> tuple[str, str]:
        """Return output and errors."""
        texts = []
        for stream, begin in zip(rank_streams(), self._begins, strict=True):
            stream.seek(begin)
            texts.append(stream.read().decode())
        return texts[0], texts[1]
