"""The life of one rank: groups, the job, and an exit code, whatever happens."""

import gc
import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch.distributed as dist

from ckptrun.config.run import RunConfig, check_world
from ckptrun.exit_codes import ExitCode, exit_code_of
from ckptrun.fault import plan_faults
from ckptrun.process_groups import Groups, choose_device, hosted_by_agent, launcher_store, open_groups
from ckptrun.processes import end_with_parent, print_to
from ckptrun.run.determinism import make_deterministic
from ckptrun.run.job import Job
from ckptrun.run.leg import Leg
from ckptrun.run.preflight import check_folder, preflight
from ckptrun.run.watch.failure import report_once
from ckptrun.run.watch.file_watch import watch_files
from ckptrun.run.watch.stop import StopSignal
from ckptrun.run.watch.tether import Tether

__all__ = ["local_rank", "run_rank"]


def local_rank(
    config: RunConfig, command: Sequence[str], leg: Leg, environment: Mapping[str, str], tether: Tether
) -> None:
    """What the local launcher calls in each new process."""
    end_with_parent()
    # The fork server has that of its own start, which may be long ago.
    os.environ.clear()
    os.environ.update(environment)
    log = leg.log_file(int(os.environ["RANK"]))
    if log is not None:
        print_to(log)
    if leg.files is not None:
        watch_files(leg.files, name=leg.rank_name(int(os.environ["RANK"])))
    code = run_rank(config, command=command, leg=leg, tether=tether)
    tether.done(code)
    sys.exit(code)


def run_rank(config: RunConfig, *, command: Sequence[str], leg: Leg | None = None, tether: Tether | None = None) -> int:
    """Be one rank of the run; return its exit code.

    Does not return when the rank fails: threads of a save in flight may wait for peers that are gone.

    Args:
        config: The checked config.
        command: The command line, for the record.
        leg: What this start is about; None: an outside launcher has started this process. Then rank 0 does the
            preflight, which otherwise the launching process has done, and the faults are those of the config.
        tether: To the launching process; None as ``leg``.
    """
    groups: Groups | None = None
    interrupt = _Interrupt()
    stop = StopSignal(grace_seconds=config.launch.stop_seconds, run_dir=config.run_dir, tether=tether)
    try:
        interrupt.listen()
        stop.listen()
        make_deterministic(config.train)
        _quieten()
        mesh = check_world(config, int(os.environ["WORLD_SIZE"]))
        if leg is None:
            # As in the fork server: a walk over torch's objects would stop this rank for a second on a busy machine.
            gc.freeze()
            leg = Leg(faults=plan_faults(config, world_size=mesh.world_size, in_proof=False))
            if os.environ["RANK"] == "0":
                check_folder(config.run_dir, in_proof=False)
                preflight(config, world_size=mesh.world_size)
        device = choose_device(config.device)
        groups = open_groups(config, device)
        stop.watch(
            groups.connect,
            rank=int(os.environ["RANK"]),
            world_size=mesh.world_size,
            timeout_seconds=config.launch.timeout_seconds,
        )
        with Job(config, mesh_shape=mesh, device=device, groups=groups, command=command, leg=leg, stop=stop) as job:
            code = job.run()
        stop.quiet()
        dist.destroy_process_group()
        stop.close()
    except BaseException as error:  # noqa: BLE001  # a sys.exit() of user code too: reported, then the process ends
        _end(error, groups, run_dir=config.run_dir, interrupted=interrupt.seen, stop=stop)
    else:
        return code


def _end(
    error: BaseException, groups: Groups | None, *, run_dir: Path, interrupted: bool, stop: StopSignal
) -> NoReturn:
    """Say what happened, once over all ranks, and end the process without waiting for anything."""
    was_ended = stop.asked
    # Nothing can be saved any more: whoever sends SIGTERM now means the end.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def about_to_speak() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        stop.let_speak()

    store = groups.store if groups is not None else launcher_store()
    report_once(
        error,
        rank=int(os.environ["RANK"]),
        store=store,
        interrupted=interrupted,
        run_dir=run_dir,
        was_ended=was_ended,
        about_to_speak=about_to_speak,
    )
    if os.environ["RANK"] == "0" and not hosted_by_agent():
        # This rank hosts the store in which the others look whether somebody has spoken.
        time.sleep(1.0)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(ExitCode.failed if interrupted else exit_code_of(error))


class _Interrupt:
    """Remembers that Ctrl-C was pressed: the error that follows may be a broken connection to a quicker peer."""

    def __init__(self) -> None:
        self.seen = False

    def listen(self) -> None:
        """From here on Ctrl-C raises KeyboardInterrupt, also one that came while this process was made."""
        signal.signal(signal.SIGINT, self._on_interrupt)
        # The local launcher blocks it while the fork server loads torch.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def _on_interrupt(self, signal_number: int, frame: FrameType | None) -> None:
        self.seen = True
        # The launcher passes on what the terminal has sent already; a second one would cut the last word off.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise KeyboardInterrupt


def _quieten() -> None:
    """Keep libraries' remarks about their own insides off the user's screen; errors stay."""
    logging.getLogger("torch").setLevel(logging.ERROR)
    for module in ("torch", "torchdata"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=module)
        warnings.filterwarnings("ignore", category=UserWarning, module=module)
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=module)
