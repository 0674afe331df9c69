"""Which rank a save or load failed on, and of what, where DCP tells of all of them."""

from torch.distributed.checkpoint.api import CheckpointException

from ckptrun.errors import CkptrunError

__all__ = ["first_failure"]


def first_failure(error: CheckpointException) -> tuple[int, BaseException]:
    """Return the lowest rank that failed, and what was raised there.

    Raises:
        CkptrunError: What was raised there, if it is one: it says all.
    """
    rank, (cause, _) = sorted(error.failures.items())[0]
    if isinstance(cause, CkptrunError):
        raise cause from error
    return rank, cause
