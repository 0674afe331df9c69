"""Saves of states that a number, the version, decides; and the version of each checkpoint in a folder, every bit checked.

One rank without a process group, and two ranks that hold a half each, save the same leaves. (Halves are leaves of their
own: ranks that make a DTensor take a second more to start.)
"""

import functools
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse

from ckptrun.checkpoint.manager import CheckpointManager, Commit
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.config.checkpoint import SaveMode
from ckptrun.engine.backends.interface import Location
from ckptrun.engine.backends.local import LocalBackend
from ckptrun.engine.backends.system_calls import SystemCalls
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import step_name
from ckptrun.engine.read_state import read_state
from ckptrun.engine.staging import HostStager
from ckptrun.engine.storage import ShardReader, ShardWriter
from ckptrun.ranks import Ranks
from ckptrun.state.components import TrainingState
from tests.support.bits import all_bits

__all__ = [
    "LARGE",
    "MEDIUM",
    "PROCESS",
    "SMALL",
    "SYNC",
    "THREAD",
    "manage",
    "place",
    "save",
    "state_of",
    "versions_in",
]

SMALL = 1000
"""Elements of a half where files shall stay small."""
MEDIUM = 9 * 2**20 // 8 + 5
"""Two halves are more than one block of a file."""
LARGE = 17 * 2**20 // 8 + 5
"""A half is more than one block of a file, with a tail that is no whole sector."""
SYNC, THREAD, PROCESS = SaveMode.sync, SaveMode.async_thread, SaveMode.async_process


def place(root: Path, step: int, calls: SystemCalls | None = None) -> Location:
    """The checkpoint of ``step`` under ``root``, reached through ``calls``."""
    return Location(LocalBackend(calls), str(root / step_name(step)))


def state_of(version: int, size: int) -> dict[str, Any]:
    """The whole state; no two versions have an element in common."""
    large = torch.arange(2 * size, dtype=torch.int32) * 1000 + version
    return {
        "rank_00000": {"large": large[:size], "small": torch.tensor(version / 7, dtype=torch.float64)},
        "rank_00001": {"large": large[size:], "list": [version, "text", b"bytes"]},
        "both": {"version": version, "size": size},
    }


def _state_here(version: int, size: int) -> dict[str, Any]:
    """The part of the state that this rank holds."""
    state = state_of(version, size)
    if dist.is_initialized():
        assert dist.get_world_size() == 2
        del state[f"rank_{1 - dist.get_rank():05d}"]
    return state


def save(target: Location, version: int, *, size: int = LARGE, mode: SaveMode = SYNC, overwrite: bool = False) -> None:
    """Save a version with DCP; return when it is committed. On every rank."""
    writer = ShardWriter(target, overwrite=overwrite)
    state, alone = _state_here(version, size), not dist.is_initialized()
    if mode is SYNC:
        dcp.save(state, storage_writer=writer, no_dist=alone)
        return
    # DCP's saving process talks to those of the other ranks.
    os.environ.setdefault("MASTER_ADDR", "localhost")
    kind = AsyncCheckpointerType.THREAD if mode is THREAD else AsyncCheckpointerType.PROCESS
    stager = HostStager()
    try:
        response = dcp.async_save(
            state, storage_writer=writer, async_stager=stager, async_checkpointer_type=kind, no_dist=alone
        )
        upload = response.upload_completion if isinstance(response, AsyncSaveResponse) else response
        upload.result(60)
    finally:
        stager.close()


class _Holder:
    def __init__(self, state: dict[str, Any]) -> None:
        self.state = state

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state = state


def manage(
    root: Location, step: int, version: int, *, size: int = LARGE, mode: SaveMode = SYNC, keep_last: int | None = 1
) -> list[Commit]:
    """Save a version as a run does, and remove what it does not keep; return what the run is told. On every rank."""
    told: list[Commit] = []
    manager = CheckpointManager(
        root,
        mode=mode,
        keep=KeepLast(count=keep_last),
        ranks=Ranks(),
        saving_group=dist.new_group(backend="gloo") if dist.is_initialized() else None,
        stager=None if mode is SYNC else HostStager(),
        facts={},
        on_commit=told.append,
    )
    components = {name: _Holder(part) for name, part in _state_here(version, size).items()}
    try:
        manager.save(TrainingState(components), step)
        manager.wait()
    finally:
        manager.close()
    return told


def versions_in(root: Path, *, through_dcp: bool = True) -> dict[int, int]:
    """Step -> version of every committed checkpoint under ``root``, each read whole and compared bit by bit."""
    return {step: _version_of(place(root, step), through_dcp) for step in list_committed(root)}


def _version_of(checkpoint: Location, through_dcp: bool) -> int:
    found = read_state(checkpoint)
    version, size = found["both"]["version"], found["both"]["size"]
    expected = _bits_of(version, size)
    assert all_bits(found) == expected, f"{checkpoint} does not hold the bits of version {version}"
    if through_dcp:
        target = state_of(-1, size)
        dcp.load(target, storage_reader=ShardReader(checkpoint), no_dist=True)
        assert all_bits(target) == expected, f"{checkpoint} does not load the bits of version {version}"
    return version


@functools.cache
def _bits_of(version: int, size: int) -> Any:
    return all_bits(state_of(version, size))
