"""Writes a folder of torch.distributed.checkpoint (DCP) through DCP itself, one leaf in memory at a time.

DCP's ``FileSystemWriter`` keeps every tensor of a file until the file is done. So the state that it plans with has
tensors without memory, the planner reads each when it is its turn, and the writer lets go of it.
"""

import io
import os
import warnings
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter, _StorageInfo
from torch.distributed.checkpoint.metadata import StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ckptrun.embedded import restore
from ckptrun.engine.backends.interface import Location
from ckptrun.formats.common.plain import save_to
from ckptrun.formats.common.selection import Advance, Selection, Written
from ckptrun.formats.dcp.reader import DcpSource

__all__ = ["write_dcp"]

_FILE = "__0_0.distcp"


def write_dcp(selection: Selection, working: Location, *, final: Location, advance: Advance) -> Written:
    """Write all leaves of ``selection``, as one rank would.

    Args:
        selection: What is written.
        working: A local folder.
        final: What it will be called; the checkpoint says so of itself.
        advance: Told what is done.
    """
    state = {
        item.name: torch.empty(item.shape, dtype=getattr(torch, str(item.dtype)), device="meta")
        if item.is_tensor
        else restore(item.leaf.value, name=item.name)
        for item in selection.items
    }
    try:
        with warnings.catch_warnings():
            # It remarks that there is no process group, which is the point.
            warnings.simplefilter("ignore")
            save(
                state,
                storage_writer=_Writer(working.path, final=str(final)),
                planner=_Planner(selection, advance),
                no_dist=True,
            )
    except CheckpointException as error:
        # What went wrong on the only rank.
        raise error.failures[0][0] from error
    paths = list(Path(working.path).iterdir())
    return Written(
        files=len(paths),
        bytes=sum(path.stat().st_size for path in paths),
        left_out=(),
        open=lambda: DcpSource(working),
    )


class _Planner(DefaultSavePlanner):
    """Plans with the shapes of tensors, and reads each when it is written."""

    def __init__(self, selection: Selection, advance: Advance) -> None:
        # The state is flat already: a plain value that is a dict must not be taken apart.
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._selection = selection
        self._advance = advance
        self._items = {item.name: item for item in selection.items}

    def set_up_planner(
        self, state_dict: dict[str, Any], storage_meta: StorageMeta | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the state, and note what the place of each leaf in the nested state is."""
        super().set_up_planner(state_dict, storage_meta, is_coordinator)
        self.mappings = {name: item.path for name, item in self._items.items()}
        self.flatten_state_dict = True

    def resolve_data(self, write_item: WriteItem) -> Tensor | io.BytesIO:
        """Return the tensor, read now, or a plain value as ``torch.save`` writes it."""
        if write_item.type is WriteItemType.BYTE_IO:
            return cast("io.BytesIO", super().resolve_data(write_item))
        item = self._items[write_item.index.fqn]
        tensor = self._selection.whole(item)
        self._advance(item.bytes)
        return tensor


class _Writer(FileSystemWriter):
    """Writes one file, and holds nothing that is written."""

    def __init__(self, path: str, *, final: str) -> None:
        super().__init__(path)
        self._final = final

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write what ``plan`` says, in its order; done on return."""
        results = []
        with (Path(self.path) / _FILE).open("wb") as stream:
            for item in plan.items:
                begin = stream.tell()
                data = planner.resolve_data(item)
                if isinstance(data, Tensor):
                    save_to(stream, data)
                else:
                    stream.write(data.getbuffer())
                length = stream.tell() - begin
                info = _StorageInfo(_FILE, begin, length)
                results.append(WriteResult(index=item.index, size_in_bytes=length, storage_data=info))
            stream.flush()
            os.fsync(stream.fileno())
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done

    def storage_meta(self) -> StorageMeta:
        """Return what the checkpoint says of itself."""
        return StorageMeta(checkpoint_id=self._final, save_id=self.save_id)
