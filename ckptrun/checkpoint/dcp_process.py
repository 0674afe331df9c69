"""Lets a forked child have a saving process of its own: DCP keeps one in a module, and with it the pipe to it.

A child that used its parent's would read the answers to its parent's saves, and the parent those to the child's.
"""

import os
import sys
from typing import Any

__all__: list[str] = []

_MODULE = "torch.distributed.checkpoint._async_process_executor"
_KEPT_BY_DCP = "_CHECKPOINT_PROCESS"
_INHERITED: list[Any] = []
"""Collected, they would try to end a process that is not theirs."""


def _start_anew() -> None:
    executor = sys.modules.get(_MODULE)
    process = getattr(executor, _KEPT_BY_DCP, None)
    if process is not None:
        _INHERITED.append(process)
        setattr(executor, _KEPT_BY_DCP, None)


os.register_at_fork(after_in_child=_start_anew)
