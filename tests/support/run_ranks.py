"""Run a function on several gloo ranks, in real processes, and hand back what each returned.

Starting ranks takes longer than what most tests do on them, so they are kept from call to call within a test module
(``tests/conftest.py`` ends them with it).
Each call begins as in a fresh process as far as tests can tell: with the same environment and the same random streams.
What looks at the process itself (its memory, a saving process that DCP keeps) asks for ranks of its own.

Nothing ends the process groups that a call has made: meshes and modules keep them. Each has threads that poll, and some
hundred of them slow the whole machine down; so ranks that have many are not kept.
"""

import contextlib
import multiprocessing.connection
import os
import random
import signal
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from ckptrun.processes import LEFT_TO_RANKS, end_with_parent
from tests.support.fork_server import CONTEXT, Printed

__all__ = ["CONTEXT", "end_kept_ranks", "rank_main", "run_ranks"]

_SEED = torch.random.initial_seed()
_MANY_GROUPS = 20


def run_ranks(
    function: Callable[..., Any], nproc: int, *args: Any, timeout_s: float = 120, fresh: bool = False
) -> list[Any]:
    """Call ``function(*args)`` on ``nproc`` ranks of a gloo group; return their results, by rank.

    ``function`` must be importable (module level); arguments and results must pickle. A rank that raises fails the
    test with that rank's traceback; a rank that does not end in time fails it by name. With ``fresh`` the ranks are
    processes that have done nothing else, and end with the call.
    """
    ranks = _KeptRanks(nproc) if fresh else _kept(nproc)
    printed = Printed()
    try:
        results = ranks.call(function, args, timeout_s)
    except AssertionError as error:
        end_kept_ranks()
        ranks.close()
        raise AssertionError(f"{error}\nRanks printed:\n{printed.read()[1][-4000:]}") from None
    if fresh:
        ranks.close()
    elif ranks.groups > _MANY_GROUPS:
        _KEPT.pop(nproc).close()
    return results


class _KeptRanks:
    """Ranks that wait for calls, in one group."""

    def __init__(self, nproc: int) -> None:
        Printed()  # the fork server is there, with its output in files
        self._folder = tempfile.TemporaryDirectory()
        self._pipes, self._ranks = [], []
        self.groups = 0
        """Process groups that a rank has, at most."""
        for rank in range(nproc):
            ours, theirs = CONTEXT.Pipe()
            process = CONTEXT.Process(target=_serve, args=(theirs, rank, nproc, self._folder.name), daemon=False)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._ranks.append(process)

    def call(self, function: Callable[..., Any], args: tuple[Any, ...], timeout_s: float) -> list[Any]:
        for pipe in self._pipes:
            with contextlib.suppress(BrokenPipeError):  # it has ended, which is told below
                pipe.send((function, args))
        waiting = dict(enumerate(self._pipes))
        results: dict[int, Any] = {}
        while waiting:
            ready = multiprocessing.connection.wait(waiting.values(), timeout_s)
            if not ready:
                raise AssertionError(f"ranks {sorted(waiting)} did not end within {timeout_s} s")
            for rank in [rank for rank, pipe in waiting.items() if pipe in ready]:
                try:
                    ok, value, groups = waiting.pop(rank).recv()
                except EOFError:
                    self._ranks[rank].join(5)
                    raise AssertionError(f"rank {rank} ended with {self._ranks[rank].exitcode}") from None
                if not ok:
                    raise AssertionError(f"rank {rank} failed:\n{value}")
                results[rank] = value
                self.groups = max(self.groups, groups)
        return [results[rank] for rank in range(len(self._ranks))]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._ranks:
            process.join(10)
            if process.is_alive():
                process.kill()
        self._folder.cleanup()


_KEPT: dict[int, _KeptRanks] = {}


def _kept(nproc: int) -> _KeptRanks:
    if nproc not in _KEPT:
        _KEPT[nproc] = _KeptRanks(nproc)
    return _KEPT[nproc]


def end_kept_ranks() -> None:
    """End all ranks that wait for another call."""
    while _KEPT:
        _KEPT.popitem()[1].close()


def _serve(pipe: Any, rank: int, nproc: int, folder: str) -> None:
    _be_rank(rank, nproc, folder)
    environment = dict(os.environ)
    try:
        while True:
            try:
                function, args = pipe.recv()
            except EOFError:
                return
            try:
                told = True, function(*args)
            except BaseException:
                told = False, traceback.format_exc()
            os.environ.clear()
            os.environ.update(environment)
            _rewind()
            pipe.send((*told, len(distributed_c10d._world.pg_map)))
    finally:
        dist.destroy_process_group()


def _rewind() -> None:
    """Let the random streams begin where those of a fresh process do."""
    torch.manual_seed(_SEED)
    random.seed(0)


def _be_rank(rank: int, nproc: int, folder: str) -> None:
    end_with_parent()
    # As a rank does once it can answer: what it starts would inherit that, and never end by SIGTERM.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_RANKS)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(nproc))
    torch.set_num_threads(1)
    _rewind()
    store = dist.FileStore(str(Path(folder) / "store"), nproc)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=nproc, timeout=timedelta(seconds=60))


def rank_main(function: Callable[..., Any], rank: int, nproc: int, folder: str, args: Any) -> None:
    """Be one rank that calls ``function(*args)`` and ends."""
    _be_rank(rank, nproc, folder)
    try:
        function(*args)
    finally:
        dist.destroy_process_group()
