"""What a writer tells of what it has written."""

from collections.abc import Callable
from dataclasses import dataclass

from ckptrun.formats.common.interface import Source
from ckptrun.formats.common.selection import Item

__all__ = ["Advance", "Written"]

Advance = Callable[[int], None]
"""Told how many more bytes are done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """A checkpoint that lies on storage, not yet under its name."""

    files: int
    bytes: int
    """Of all files."""
    left_out: tuple[Item, ...]
    """What the format cannot hold."""
    notes: tuple[str, ...] = ()
    """What whoever loads it should know."""
    open: Callable[[], Source]
    """Opens it, for comparing."""
