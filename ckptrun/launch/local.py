"""Starts the ranks of a run on this machine through torch elastic, in one command.

A fork server with torch preloaded makes ranks start in tenths of a second; it loads torch while this process does.
"""

import logging
import multiprocessing
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from multiprocessing import forkserver, resource_tracker

from ckptrun.config.run import RunConfig
from ckptrun.console import say_error
from ckptrun.exit_codes import ExitCode
from ckptrun.launch.preflight import preflight

__all__ = ["launch", "start_fork_server"]

_OWN_CODES = (ExitCode.config, ExitCode.different, ExitCode.not_verified)


def launch(config: RunConfig, *, command: Sequence[str]) -> int:
    """Run ``config`` on ``config.ranks`` new processes; return the exit code of the run.

    Raises:
        ConfigError: Something that needs no rank to be seen is wrong.
    """
    start_fork_server(config)
    preflight(config, world_size=config.ranks)

    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    from ckptrun.launch.rank import elastic_rank

    # Ranks say themselves what brought them down; the agent's traces of its own loop say nothing more.
    # Each of its modules has a logger with a level of its own.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(("torch.distributed.elastic", "torch.multiprocessing")):
            logging.getLogger(name).setLevel(logging.CRITICAL)

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
    )
    try:
        elastic_launch(elastic, elastic_rank)(config, list(command))
    except ChildFailedError as error:
        return _explain(error)
    except SignalException as ended:
        if ended.sigval is not signal.SIGINT:
            # On Ctrl-C the ranks speak.
            say_error(f"ckptrun: ended by {signal.Signals(ended.sigval).name}. Run the same command again to resume.")
        return ExitCode.failed
    return ExitCode.done


def start_fork_server(config: RunConfig) -> None:
    """Start the process that ranks are forked from, unless it runs already; returns before it has loaded torch."""
    os.environ.setdefault("OMP_NUM_THREADS", str(config.train.threads))
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "10")
    # A console script does not look into the working folder, where the user's own modules may lie.
    if str(os.getcwd()) not in sys.path and "" not in sys.path:  # noqa: PTH109  # sys.path holds str
        sys.path.insert(0, os.getcwd())  # noqa: PTH109
    # The first DTensor imports the compiler; every rank would do it again.
    multiprocessing.set_forkserver_preload(["ckptrun.launch.rank", "torch._dynamo"])
    # The server ignores Ctrl-C only after it has loaded torch; until then it would end with a stack of imports. Ranks
    # inherit the mask and lift it when they can answer. The tracker comes first: its start ends with SIGINT unblocked.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _explain(error: object) -> int:
    """Say what a rank could not say itself; return the exit code of the first rank that failed."""
    failures = getattr(error, "failures", {})
    first = min(failures.values(), key=lambda failure: failure.timestamp)
    killed = {rank: failure.exitcode for rank, failure in failures.items() if failure.exitcode < 0}
    # The agent ends the others with SIGTERM when one rank fails; that is no cause.
    causes = {rank: code for rank, code in killed.items() if code != -signal.SIGTERM}
    for rank, code in sorted(causes.items()):
        say_error(f"ckptrun: rank {rank} was ended by {signal.Signals(-code).name}.")
    codes = {failure.exitcode for failure in failures.values()}
    own = [code for code in _OWN_CODES if code in codes]
    if own and not causes:
        return own[0]
    if first.exitcode in _OWN_CODES:
        return int(first.exitcode)
    return ExitCode.failed
