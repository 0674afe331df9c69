"""How a rank learns that it shall end before its time: SIGTERM, or that the others wait for a rank in vain."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from torch._C._distributed_c10d import Store

from ckptrun.console import say_error
from ckptrun.exit_codes import ExitCode
from ckptrun.process_groups import hosted_by_agent
from ckptrun.run.watch.failure import has_spoken, speak_once
from ckptrun.run.watch.preemption import Preemption
from ckptrun.run.watch.stall import Stall
from ckptrun.run.watch.tether import Tether
from ckptrun.run.watch.watchdog import Watchdog

__all__ = ["StopSignal"]


class StopSignal:
    """SIGTERM and the watchdog of one rank.

    Args:
        grace_seconds: How long after SIGTERM the rank may take to reach the next step boundary and save.
        run_dir: Where it is recorded who stalled.
        tether: To the launcher, if that is our own.
    """

    def __init__(self, *, grace_seconds: float, run_dir: Path, tether: Tether | None = None) -> None:
        # torchrun passes on what it gets, and on a busy machine that may come late; the grace bounds it anyway.
        echo_seconds = grace_seconds if tether is None and hosted_by_agent() else 2.0
        self._preemption = Preemption(grace_seconds=grace_seconds, echo_seconds=echo_seconds, tether=tether)
        self._tether = tether
        self._watchdog: Watchdog | None = None
        self._run_dir = run_dir
        self.passed: Callable[[str, int], None] = _nobody_waits if tether is None else tether.passed

    @property
    def asked(self) -> bool:
        """Whether SIGTERM has come."""
        return self._preemption.asked

    def listen(self) -> None:
        """From here on SIGTERM is a question, not the end. Main thread."""
        self._preemption.listen()

    def watch(self, connect: Callable[[], Store], *, rank: int, world_size: int, timeout_seconds: float) -> None:
        """Begin to watch the others. ``connect`` gives a connection to the store that nobody else uses."""
        to_ask, to_speak = connect(), connect()
        is_host = rank == 0 and not hosted_by_agent()
        self._preemption.watch_peers(lambda: has_spoken(to_ask))

        def give_up(stall: Stall) -> NoReturn:
            if stall.store_is_silent:
                # It would not answer who may speak.
                say_error(f"ckptrun: {stall.message}")
            else:
                speak_once(stall.message, rank=rank, store=to_speak, run_dir=self._run_dir)
                if is_host:
                    # The others ask this rank's store whether somebody has spoken.
                    time.sleep(1.0)
            sys.stderr.flush()
            os._exit(ExitCode.failed)

        self._watchdog = Watchdog(
            connect=connect, rank=rank, world_size=world_size, timeout_seconds=timeout_seconds, on_stall=give_up
        )
        self.passed = self._passed
        self._watchdog.start()

    def let_speak(self) -> None:
        """The rank fails: it is to say why before anybody ends it."""
        self._preemption.let_speak()

    def quiet(self) -> None:
        """The rank is done, and waits for nobody any more. All ranks call, before any of them ends."""
        if self._watchdog is not None:
            self._watchdog.close()

    def close(self) -> None:
        """The process may live on: SIGTERM means again what it did before. Main thread."""
        self._preemption.close()

    def _passed(self, point: str, step: int) -> None:
        if self._watchdog is not None:
            self._watchdog.passed(point, step)
        if self._tether is not None:
            self._tether.passed(point, step)


def _nobody_waits(point: str, step: int) -> None:
    """There are no others yet."""
