"""Lets a failing rank speak once, first, and alone: what brought it down, not what its end did to the others."""

import contextlib
import os
import time
import traceback

import torch.distributed as dist
from torch._C._distributed_c10d import Store

from ckptrun.console import say_error
from ckptrun.errors import CkptrunError

__all__ = ["report_once"]

_KEY = "ckptrun_failure"
_PATIENCE_SECONDS = 3.0


def report_once(error: BaseException, *, rank: int, store: Store | None, interrupted: bool) -> None:
    """Print ``error`` unless another rank has, or will have, a better one to print.

    A rank whose peer died sees only a broken connection; it waits for the peer's own word before it speaks. The store
    belongs to the launcher and outlives the peer.
    """
    secondary = _is_broken_connection(error)
    if not _claim(store, rank, patience_seconds=_PATIENCE_SECONDS if secondary else 0.0):
        return
    if interrupted or isinstance(error, KeyboardInterrupt):
        say_error("ckptrun: interrupted. Run the same command again to resume from the newest checkpoint.")
    elif isinstance(error, CkptrunError):
        say_error(f"ckptrun: {error}")
    elif secondary:
        say_error(
            f"ckptrun: rank {rank} lost contact with another rank, which ended without a word or was too slow "
            f"(launch.timeout_seconds): {str(error).splitlines()[0]}"
        )
    else:
        say_error(f"ckptrun: rank {rank} failed:\n{''.join(traceback.format_exception(error))}")


def _is_broken_connection(error: BaseException) -> bool:
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def _claim(store: Store | None, rank: int, *, patience_seconds: float) -> bool:
    """Whether this rank is the one to speak."""
    if store is None:
        return os.environ.get("RANK", "0") == "0"
    until = time.monotonic() + patience_seconds
    with contextlib.suppress(RuntimeError):
        # A store that is gone raises: rank 0 hosted it and is dead, so somebody must speak.
        while time.monotonic() < until:
            if store.check([_KEY]):
                return False
            time.sleep(0.05)
        return bool(store.compare_set(_KEY, "", str(rank)).decode() == str(rank))
    return True
