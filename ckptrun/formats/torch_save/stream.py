"""``torch.save`` to a stream, with the error of the storage where that fails."""

from typing import IO, Any

import torch

__all__ = ["save_to"]


def save_to(stream: IO[bytes], value: Any) -> None:
    """Append what ``torch.save`` writes.

    Raises:
        OSError: From the stream. torch itself would say that the archive is not in order.
    """
    try:
        torch.save(value, stream)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
