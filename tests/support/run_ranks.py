"""Run a function on several gloo ranks, in real processes, and hand back what each returned."""

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.support.fork_server import Printed

CONTEXT = multiprocessing.get_context("forkserver")


def run_ranks(function: Callable[..., Any], nproc: int, *args: Any, timeout_s: float = 120) -> list[Any]:
    """Call ``function(*args)`` on ``nproc`` ranks of a gloo group; return their results, by rank.

    ``function`` must be importable (module level); arguments and results must pickle. A rank that raises fails the
    test with that rank's traceback; a rank that does not end in time fails it by name.
    """
    printed = Printed()
    with tempfile.TemporaryDirectory() as folder:
        queue = CONTEXT.SimpleQueue()
        ranks = [
            CONTEXT.Process(target=rank_main, args=(function, rank, nproc, folder, queue, args), daemon=False)
            for rank in range(nproc)
        ]
        for process in ranks:
            process.start()
        try:
            return _collect(queue, ranks, timeout_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\nRanks printed:\n{printed.read()[1][-4000:]}") from None
        finally:
            for process in ranks:
                process.join(5)
                if process.is_alive():
                    process.kill()


def _collect(queue: Any, ranks: list[Any], timeout_s: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(ranks):
        if not queue._reader.poll(timeout_s):
            missing = sorted(set(range(len(ranks))) - results.keys())
            raise AssertionError(f"ranks {missing} did not end within {timeout_s} s")
        rank, ok, value = queue.get()
        if not ok:
            raise AssertionError(f"rank {rank} failed:\n{value}")
        results[rank] = value
    return [results[rank] for rank in range(len(ranks))]


def rank_main(function: Callable[..., Any], rank: int, nproc: int, folder: str, queue: Any, args: Any) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(nproc))
    torch.set_num_threads(1)
    store = dist.FileStore(str(Path(folder) / "store"), nproc)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=nproc, timeout=timedelta(seconds=60))
    try:
        queue.put((rank, True, function(*args)))
    except BaseException:
        queue.put((rank, False, traceback.format_exc()))
    finally:
        dist.destroy_process_group()
