"""Starts the ranks of a run on this machine through torch elastic, in one command.

A fork server with torch preloaded makes ranks start in tenths of a second; it loads torch while this process does.
"""

import contextlib
import logging
import math
import os
import signal
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing import forkserver, resource_tracker

from ckptrun.config.run import RunConfig
from ckptrun.exit_codes import ExitCode
from ckptrun.launch.hash_seeds import hash_seed
from ckptrun.launch.leg import Leg
from ckptrun.launch.preflight import preflight

__all__ = ["Outcome", "start_fork_server", "start_ranks"]

_AGENT_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)

_OWN_CODES = (ExitCode.config, ExitCode.different, ExitCode.not_verified)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a set of ranks ended."""

    exit_code: int
    killed: Mapping[int, int] = field(default_factory=dict)
    """Rank -> the signal that ended it, without those that the agent itself has ended."""
    interrupted_by: signal.Signals | None = None
    """What this process was told meanwhile."""


def start_ranks(config: RunConfig, *, command: Sequence[str], leg: Leg) -> Outcome:
    """Start ``config.ranks`` processes, wait until all have ended, and say how. Prints nothing itself.

    Raises:
        ConfigError: Something that needs no rank to be seen is wrong.
    """
    preflight(config, world_size=config.ranks)

    # Imported here: it loads torch, which the fork server does meanwhile.
    import torch.distributed.launcher.api  # noqa: F401

    # Ranks say themselves what brought them down; the agent's traces of its own loop say nothing more.
    # Each of its modules has a logger with a level of its own.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    server = start_fork_server(config, in_proof=leg.in_proof, fresh=leg.fresh)
    with tempfile.TemporaryDirectory(prefix="ckptrun-") as folder, _forking_from(server):
        return _started(config, command=command, leg=leg, agent_folder=folder)


def _started(config: RunConfig, *, command: Sequence[str], leg: Leg, agent_folder: str) -> Outcome:
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from ckptrun.launch.rank import elastic_rank

    elastic = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=config.ranks,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.05,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=agent_folder),
    )
    handlers = {number: signal.getsignal(number) for number in _AGENT_SIGNALS}
    try:
        elastic_launch(elastic, elastic_rank)(config, list(command), leg)
    except ChildFailedError as error:
        return _outcome(error)
    except SignalException as ended:
        return Outcome(exit_code=ExitCode.failed, interrupted_by=signal.Signals(ended.sigval))
    finally:
        # The agent leaves its own behind.
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Outcome(exit_code=ExitCode.done)


_SERVERS: dict[tuple[bool, str | None], forkserver.ForkServer] = {}


def start_fork_server(config: RunConfig, *, in_proof: bool = False, fresh: bool = False) -> forkserver.ForkServer:
    """Start the process that ranks are forked from, unless it runs already; returns before it has loaded torch.

    Args:
        config: Of the run.
        in_proof: Whether ranks need a hash seed that is known; otherwise any server will do.
        fresh: The other one of the two that a proof has, see ``hash_seeds``.
    """
    os.environ.setdefault("OMP_NUM_THREADS", str(config.train.threads))
    # Longer than ranks take to save after SIGTERM.
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(math.ceil(config.launch.stop_seconds + 2)))
    # A console script does not look into the working folder, where the user's own modules may lie.
    if str(os.getcwd()) not in sys.path and "" not in sys.path:  # noqa: PTH109  # sys.path holds str
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    seed = hash_seed(fresh=fresh) if in_proof else None
    key = next(iter(_SERVERS), (fresh, seed)) if seed is None else (fresh, seed)
    server = _SERVERS.setdefault(key, forkserver.ForkServer())
    # The first DTensor imports the compiler; every rank would do it again.
    server.set_forkserver_preload(["ckptrun.launch.fork_server"])
    # The server ignores Ctrl-C only after it has loaded torch; until then it would end with a stack of imports. Ranks
    # inherit the mask and lift it when they can answer. The tracker comes first: its start ends with SIGINT unblocked.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _environment_with(PYTHONHASHSEED=key[1]):
            server.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    if not fresh:
        # Whoever asks multiprocessing for a process has one with torch in it.
        _let_fork(server)
    return server


@contextlib.contextmanager
def _environment_with(**values: str | None) -> Iterator[None]:
    """Let processes that are started meanwhile have ``values`` in their environment; None: what is there."""
    set_values = {name: value for name, value in values.items() if value is not None}
    before = {name: os.environ.get(name) for name in set_values}
    os.environ.update(set_values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            os.environ.update({} if value is None else {name: value})


@contextlib.contextmanager
def _forking_from(server: forkserver.ForkServer) -> Iterator[None]:
    """Let torch elastic, which asks ``multiprocessing`` for processes, have those of ``server``."""
    before = forkserver._forkserver
    _let_fork(server)
    try:
        yield
    finally:
        _let_fork(before)


def _let_fork(server: forkserver.ForkServer) -> None:
    forkserver._forkserver = server
    forkserver.ensure_running = server.ensure_running
    forkserver.connect_to_new_process = server.connect_to_new_process


def _outcome(error: object) -> Outcome:
    """Which ranks were killed, and the exit code of the first rank that failed."""
    failures = getattr(error, "failures", {})
    first = min(failures.values(), key=lambda failure: failure.timestamp)
    killed = {rank: failure.exitcode for rank, failure in failures.items() if failure.exitcode < 0}
    # The agent ends the others with SIGTERM when one rank fails; that is no cause.
    causes = {rank: code for rank, code in killed.items() if code != -signal.SIGTERM}
    by_signal = {rank: -code for rank, code in causes.items()}
    codes = {failure.exitcode for failure in failures.values()}
    own = [code for code in _OWN_CODES if code in codes]
    if own and not causes:
        return Outcome(exit_code=own[0])
    code = int(first.exitcode) if first.exitcode in _OWN_CODES else ExitCode.failed
    return Outcome(exit_code=code, killed=by_signal)
