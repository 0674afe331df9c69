"""The process that one cell of a sweep is carried out in, with its ranks below it. Torch-free."""

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from ckptrun.config.run import RunConfig
from ckptrun.console import say_error
from ckptrun.errors import CkptrunError
from ckptrun.exit_codes import ExitCode, exit_code_of
from ckptrun.launch.local import use_origins
from ckptrun.processes import LEFT_TO_RANKS, end_with_parent, print_to

__all__ = ["be_cell"]


def be_cell(
    start: Callable[[RunConfig], int],
    config: RunConfig,
    environment: Mapping[str, str],
    servers: Mapping[Any, str],
    log: Path,
    answer: Connection,
) -> None:
    """Carry out a cell; called in a new process, which leads a process group of its own, and ends it.

    Signals reach it from the sweep alone, and not from the terminal as well.

    Args:
        start: Carries a config out; returns the exit code.
        config: Of the cell, in its place.
        environment: That of the sweep.
        servers: Fork servers of the sweep, see ``ckptrun.launch.local``.
        log: What it and all that it starts print goes there.
        answer: Where it says what it came to: the exit code, and why, where that was an error of somebody's.
    """
    os.setpgid(0, 0)
    end_with_parent()
    os.environ.clear()
    os.environ.update(environment)
    print_to(log)
    use_origins(servers)
    for number in LEFT_TO_RANKS:
        signal.signal(number, _end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_RANKS)
    code, reason = _carried_out(start, config)
    with contextlib.suppress(OSError):
        answer.send((code, reason))
    answer.close()
    sys.stdout.flush()
    sys.stderr.flush()
    sys.exit(code)


def _carried_out(start: Callable[[RunConfig], int], config: RunConfig) -> tuple[int, str]:
    try:
        return int(start(config)), ""
    except CkptrunError as error:
        say_error(f"ckptrun: {error}")
        return int(exit_code_of(error)), str(error)
    except KeyboardInterrupt:
        return int(ExitCode.failed), ""
    except Exception as error:  # noqa: BLE001  # nobody has foreseen it: it stands in the log, and the sweep goes on
        traceback.print_exc()
        return int(ExitCode.failed), f"{type(error).__name__}: {error}"


def _end(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
