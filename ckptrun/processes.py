"""Processes that must not outlive who started them. Torch-free."""

import multiprocessing
import os
import threading

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """From here on this process ends at once, without a word, when the one that started it is gone, however that ended.

    For processes that ``multiprocessing`` has started, be it through a fork server; others are left alone.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for, args=(parent,), name="EndWithParent", daemon=True).start()


def _wait_for(parent: multiprocessing.process.BaseProcess) -> None:
    parent.join()
    os._exit(1)
