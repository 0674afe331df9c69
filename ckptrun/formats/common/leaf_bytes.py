"""The bytes of a leaf as it is written, for :func:`~ckptrun.engine.write_files.write_files`: read slab by slab."""

import math

from ckptrun.engine.dtypes import item_bytes
from ckptrun.engine.tensor_bytes import writable_bytes
from ckptrun.errors import InternalError
from ckptrun.formats.common.interface import row_shape
from ckptrun.formats.common.selection import Advance, Item, Selection

__all__ = ["LeafBytes"]

_STEP_BYTES = 2**20


class LeafBytes:
    """See :class:`~ckptrun.engine.write_files.ByteSource`. Holds one slab; bytes are asked for in order."""

    step_bytes = _STEP_BYTES

    def __init__(self, selection: Selection, item: Item, advance: Advance) -> None:
        self._selection = selection
        self._item = item
        self._advance = advance
        self.bytes = item.bytes
        self._row_bytes = math.prod(row_shape(item.shape)[1:]) * item_bytes(str(item.dtype))
        self._slabs = item.slabs()
        self._memory = memoryview(b"")
        self._begin = 0

    def copy(self, begin: int, target: memoryview) -> None:
        """Fill ``target`` from byte ``begin`` on, which is where the last call ended."""
        done = 0
        while done < target.nbytes:
            inside = begin + done - self._begin
            if inside >= self._memory.nbytes:
                self._read_next()
                continue
            part = self._memory[inside : inside + target.nbytes - done]
            target[done : done + part.nbytes] = part
            done += part.nbytes

    def _read_next(self) -> None:
        # One slab is gone before the next one is read.
        self._memory = memoryview(b"")
        first, count = next(self._slabs)
        memory = writable_bytes(self._selection.rows(self._item, first, count, is_counted=True))
        if memory is None or memory.nbytes != count * self._row_bytes:
            raise InternalError(f"Rows {first} to {first + count} of leaf '{self._item.name}' are not in order.")
        self._begin, self._memory = first * self._row_bytes, memory
        self._advance(memory.nbytes)
