"""Tells errors of a connection that broke, or took too long, from everybody else's, whatever their words."""

import re
from types import TracebackType

import torch.distributed as dist

from ckptrun.run.watch.stacks import is_of_torch

__all__ = ["is_broken_connection", "is_secondary"]

# How gloo begins what it says: [/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer ...
_OF_GLOO = re.compile(r"\[[^\]\n]*gloo[^\]\n]*:\d+\]|Gloo connect", re.IGNORECASE)
# Where torch waits for other ranks; backward does so in the reductions of DistributedDataParallel.
_WAITS = ("distributed/", "nn/parallel/", "autograd/")


def is_broken_connection(error: BaseException) -> bool:
    """Whether torch.distributed or gloo raised ``error`` because a rank was gone, or too slow."""
    if isinstance(error, dist.DistError):
        return True
    if type(error) is not RuntimeError or "gloo" not in str(error).lower():
        return False
    return _OF_GLOO.match(str(error)) is not None or is_of_torch(_innermost(error.__traceback__), below=_WAITS)


def is_secondary(error: BaseException) -> bool:
    """Whether ``error`` is, or was raised because of, a broken connection: another rank may know more."""
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        if is_broken_connection(one):
            return True
        seen.add(id(one))
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return False


def _innermost(traceback: TracebackType | None) -> str:
    """The file of the innermost Python frame; empty where there is none."""
    file = ""
    while traceback is not None:
        file, traceback = traceback.tb_frame.f_code.co_filename, traceback.tb_next
    return file
