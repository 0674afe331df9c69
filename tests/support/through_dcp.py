"""Saves and loads as users of DCP do, in this process alone."""

from typing import Any

import pytest
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException

from ckptrun.engine.storage import ShardReader, ShardWriter


def save(state: dict[str, Any], url: Any, planner: Any = None, **options: Any) -> None:
    """Save; ``options`` are those of the writer."""
    dcp.save(state, storage_writer=ShardWriter(url, **options), planner=planner, no_dist=True)


def load(state: dict[str, Any], url: Any, planner: Any = None) -> None:
    """Load into ``state``."""
    dcp.load(state, storage_reader=ShardReader(url), planner=planner, no_dist=True)


def failed(function: Any, *args: Any, **options: Any) -> BaseException:
    """What went wrong on rank 0."""
    with pytest.raises(CheckpointException) as error:
        function(*args, **options)
    return error.value.failures[0][0]
