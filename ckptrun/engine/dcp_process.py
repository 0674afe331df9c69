"""Looks after the process that DCP saves in: it keeps one in a module, with a pipe to it, and lets it end with Python.

A child that used its parent's would read the answers to its parent's saves, and the parent those to the child's: a
forked child has one of its own.

A run's own sits signals out (see ``processes.py``), the one by which ``multiprocessing`` ends it as well: the exit of a
rank would wait for it for ever. So it is told to end when the rank saves no more, and ends by itself when the rank is
gone, whatever it is about: a restarted run must not find the lock of a save that nobody waits for.
"""

import contextlib
import functools
import logging
import os
import sys
from typing import Any

from ckptrun.processes import end_with_parent

__all__ = ["end_saving_process", "serve_rank"]

_MODULE = "torch.distributed.checkpoint._async_process_executor"
_KEPT_BY_DCP = "_CHECKPOINT_PROCESS"
_END_SECONDS = 5.0
_INHERITED: list[Any] = []
"""Collected, they would try to end a process that is not theirs."""


def end_saving_process() -> None:
    """End the process that DCP has started for this one, if any; another save starts another. No save is in flight."""
    kept = _taken_from_dcp()
    if kept is None:
        return
    with contextlib.suppress(OSError, ValueError):
        kept._send(sys.modules[_MODULE]._CheckpointSaveProcessControlOpts.TERMINATE)
    kept._save_process.join(_END_SECONDS)
    if kept._save_process.is_alive():
        kept._save_process.kill()
        kept._save_process.join()


@functools.cache
def serve_rank() -> None:
    """Called in the process that saves for a rank: it does not outlive it, nor talk of each save."""
    # DCP lets all loggers of that process speak of all they do, on the screen of the rank.
    logging.getLogger().setLevel(logging.WARNING)
    end_with_parent()


def _taken_from_dcp() -> Any | None:
    executor = sys.modules.get(_MODULE)
    kept = getattr(executor, _KEPT_BY_DCP, None)
    if kept is not None:
        setattr(executor, _KEPT_BY_DCP, None)
    return kept


def _start_anew() -> None:
    kept = _taken_from_dcp()
    if kept is not None:
        _INHERITED.append(kept)


os.register_at_fork(after_in_child=_start_anew)
