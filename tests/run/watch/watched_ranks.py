"""Ranks that hang in one way or another, under a watchdog, with a gloo group that gives up at the same timeout.

A scenario is a function of the rank and its watchdog; it runs in a real process. What ranks have to say goes through a
pipe: when a hang begins, what a watchdog declares, and what a scenario returns.
"""

import os
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from ckptrun.run.watch.failure import report_once
from ckptrun.run.watch.stall import Stall
from ckptrun.run.watch.watchdog import Watchdog
from tests.support.fork_server import Printed
from tests.support.run_ranks import CONTEXT

__all__ = ["Declared", "Rank", "hang", "run_watched"]


class Wire:
    """What a rank has to say. One for each: a rank that is stopped while it speaks must not keep the others silent."""

    def __init__(self, end: Any) -> None:
        self._end = end
        self._lock = threading.Lock()

    def say(self, kind: str, value: Any) -> None:
        with self._lock:
            self._end.send((kind, value))


@dataclass
class Rank:
    """What a scenario gets."""

    rank: int
    world_size: int
    watchdog: Watchdog
    wire: Wire
    folder: str

    def begins_to_hang(self) -> None:
        self.wire.say("hangs", time.monotonic())


@dataclass
class Declared:
    """The first stall that was declared, and how long after the hang began."""

    by: int
    stall: Stall
    after_seconds: float


def hang() -> None:
    """Where ranks are to be found."""
    threading.Event().wait()


def run_watched(
    scenario: Callable[[Rank], Any],
    *,
    folder: str,
    nproc: int = 3,
    timeout_seconds: float,
    group_seconds: float | None = None,
    store_on_rank_0: bool = False,
) -> Declared | list[Any]:
    """Run ``scenario`` on ranks; return the first stall declared, or what each rank returned."""
    printed = Printed()
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ports = (store.port, _free_port() if store_on_rank_0 else store.port)
    plan = (nproc, scenario, folder, ports, timeout_seconds, group_seconds or timeout_seconds)
    wires = [CONTEXT.Pipe(duplex=False) for _ in range(nproc)]
    ranks = [CONTEXT.Process(target=_be_rank, args=(rank, wire, *plan)) for rank, (_, wire) in enumerate(wires)]
    with _ended_at_last(ranks):
        for _, wire in wires:
            wire.close()
        try:
            return _outcome([reader for reader, _ in wires], until=time.monotonic() + 60)
        except (AssertionError, EOFError) as error:
            raise AssertionError(f"{error}\nRanks printed:\n{printed.read()[1][-4000:]}") from None


@contextmanager
def _ended_at_last(ranks: list[Any]) -> Iterator[None]:
    for process in ranks:
        process.start()
    try:
        yield
    finally:
        for process in ranks:
            # Also ends one that is stopped.
            process.kill()
            process.join(10)


def _outcome(readers: list[Any], until: float) -> Declared | list[Any]:
    results: dict[int, Any] = {}
    began = 0.0
    while len(results) < len(readers):
        open_readers = [reader for rank, reader in enumerate(readers) if rank not in results]
        ready = wait(open_readers, timeout=max(0.0, until - time.monotonic()))
        assert ready, f"nothing was declared; ranks {sorted(results)} have ended"
        rank = readers.index(ready[0])
        kind, value = ready[0].recv()
        if kind == "hangs":
            began = value
        elif kind == "stall":
            stall, at = value
            return Declared(rank, stall, at - began)
        elif kind == "failed":
            raise AssertionError(f"rank {rank} failed before anybody spoke:\n{value}")
        else:
            results[rank] = value
    return [results[rank] for rank in range(len(readers))]


def _be_rank(
    rank: int,
    end: Any,
    world_size: int,
    scenario: Callable[[Rank], Any],
    folder: str,
    ports: tuple[int, int],
    timeout_seconds: float,
    group_seconds: float,
) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    wire = Wire(end)
    group_port, watch_port = ports
    hosted = watch_port != group_port and rank == 0
    kept = TCPStore("127.0.0.1", watch_port, is_master=True, wait_for_workers=False) if hosted else None
    watchdog = Watchdog(
        connect=lambda: PrefixStore("attempt_0", _client(watch_port)),
        rank=rank,
        world_size=world_size,
        timeout_seconds=timeout_seconds,
        on_stall=lambda stall: wire.say("stall", (stall, time.monotonic())),
    )
    dist.init_process_group(
        "gloo",
        store=PrefixStore("group", _client(group_port)),
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=group_seconds),
    )
    watchdog.start()
    try:
        outcome = scenario(Rank(rank, world_size, watchdog, wire, folder))
        watchdog.close()
        dist.barrier()
    except BaseException as error:
        # As a rank does: it waits a little for a better word than its own broken connection.
        store = PrefixStore("failure", _client(group_port))
        report_once(
            error,
            rank=rank,
            store=store,
            interrupted=False,
            run_dir=Path(folder),
            was_ended=False,
            about_to_speak=lambda: None,
        )
        wire.say("failed", traceback.format_exc())
    else:
        wire.say("ended", outcome)
    del kept


def _client(port: int) -> Store:
    return TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=30))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
