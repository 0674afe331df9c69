"""Writes a file of ``torch.save``. It takes a whole state at once, so the whole state is in memory."""

import copy
import os
from pathlib import Path
from typing import Any

from torch import Tensor

from ckptrun.embedded import restore
from ckptrun.engine.backends.interface import Location
from ckptrun.engine.nested import Places
from ckptrun.engine.tensor_bytes import dtype_name
from ckptrun.errors import UnsupportedLeafError
from ckptrun.formats.common.plain import save_to
from ckptrun.formats.common.selection import Advance, Item, Selection, Written
from ckptrun.formats.torch_save.reader import TorchSource

__all__ = ["write_torch"]


def write_torch(selection: Selection, working: Location, *, advance: Advance) -> Written:
    """Write all leaves of ``selection``, nested as their paths say, optimizers as torch's own. Tied tensors stay tied.

    Args:
        selection: What is written.
        working: Becomes a local file.
        advance: Told what is done.

    Raises:
        ManifestError: Two leaves claim one place.
    """
    if len({item.path for item in selection.items}) != len(selection.items):
        raise UnsupportedLeafError(f"Two leaves of {selection.source.address} have the same place in the nested state.")
    state: dict[str, Any] = {}
    places = Places(state)
    tensors = _Tensors(selection)
    for optimizer in selection.optimizers:
        optimizer.begin(state)
    for item in selection.items:
        # A copy, because what comes later may be placed inside it.
        places.put(item.path, tensors.of(item) if item.is_tensor else _value_of(item))
        advance(item.bytes)
    for optimizer in selection.optimizers:
        optimizer.finish(state)
    with Path(working.path).open("wb") as stream:
        save_to(stream, state)
        stream.flush()
        os.fsync(stream.fileno())
    return Written(
        files=1,
        bytes=Path(working.path).stat().st_size,
        left_out=(),
        open=lambda: TorchSource(working, {item.name: item.path for item in selection.items}),
        notes=tuple(note for optimizer in selection.optimizers for note in optimizer.notes()),
    )


def _value_of(item: Item) -> Any:
    return copy.deepcopy(restore(item.leaf.value, name=item.name))


class _Tensors:
    """The tensors of a selection; one for all leaves that are the same memory."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._group = {name: group for group in selection.shared for name in group}
        self._known: dict[tuple[str, ...], Tensor] = {}

    def of(self, item: Item) -> Tensor:
        """Return the full tensor of a leaf."""
        group = self._group.get(item.name, (item.name,))
        known = self._known.get(group)
        if known is not None and (dtype_name(known.dtype), known.shape) == (item.dtype, item.shape):
            return known
        self._known[group] = self._selection.whole(item)
        return self._known[group]
