"""Runs ranks of which one really dies, and ends the others as a launcher would."""

import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any

from tests.support.fork_server import rank_streams
from tests.support.run_ranks import CONTEXT, rank_main


def run_until_killed(function: Callable[..., Any], nproc: int, *args: Any, timeout_s: float = 60) -> list[int | None]:
    """Call ``function(*args)`` on ``nproc`` ranks until one dies of SIGKILL; kill the others; return exit codes by rank.

    Exit codes of ranks that were killed from here are None.
    """
    rank_streams()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [CONTEXT.Process(target=rank_main, args=(function, rank, nproc, folder, args)) for rank in range(nproc)]
        for process in ranks:
            process.start()
        until = time.monotonic() + timeout_s
        while all(process.exitcode != -signal.SIGKILL for process in ranks):
            assert time.monotonic() < until, "no rank was killed"
            assert any(process.exitcode is None for process in ranks), "all ranks ended, none was killed"
            time.sleep(0.01)
        codes = [process.exitcode for process in ranks]
        for process in ranks:
            process.kill()
            process.join()
        return codes
