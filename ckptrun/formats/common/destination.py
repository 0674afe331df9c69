"""Where a converted checkpoint appears, at once or not at all: written beside its place, checked, then renamed.

::

    DST.tmp-<id>          while it is written; a file or a folder
    DST.tmp-<id>.lock     there as long as the process that writes it lives
    DST.old-<id>          what is overwritten, where it is a folder, for the moment between two renames

A kill leaves what was at DST, or all of the new one, and never a part. What a killed process left is removed by the
next conversion to the same DST. Local paths only: object stores cannot rename.
"""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.backends.system_calls import SystemCalls
from ckptrun.engine.commit import hold_save, save_owner
from ckptrun.engine.layout import MANIFEST, LeftoverKind, leftover_name, new_save_id, parse_leftover
from ckptrun.errors import CheckpointExistsError, ConfigError
from ckptrun.text import joined

__all__ = ["Destination", "remove_leftovers", "require_apart", "require_free"]

_OWN_NAMES = (MANIFEST, ".metadata", "model.safetensors.index.json")
_OWN_SUFFIXES = (".distcp", ".safetensors")


def require_apart(source: Location, target: Location) -> None:
    """Check that neither of two local places lies in the other.

    Raises:
        ConfigError: One does; writing it would change or delete the other.
    """
    one, other = Path(source.path).resolve(), Path(target.path).resolve()
    if one == other or one in other.parents or other in one.parents:
        raise ConfigError(
            f"{target} cannot be written while {source} is read: one lies in the other. Name another DST."
        )


def require_free(target: Location, *, overwrite: bool, is_folder: bool) -> None:
    """Check that something may be written to ``target``.

    Args:
        target: May exist.
        overwrite: Whether a checkpoint that is there may be replaced.
        is_folder: Whether a folder is written, or a file.

    Raises:
        CheckpointExistsError: There is something, and it may not be replaced, or would be lost with other things.
    """
    path = Path(target.path)
    if not path.exists() and not path.is_symlink():
        return
    if path.is_dir() and not any(path.iterdir()) and is_folder:
        return
    if not overwrite:
        raise CheckpointExistsError(f"{target} exists. Name another DST, or pass --overwrite.", folder=str(target))
    if path.is_dir() != is_folder:
        kinds = ("folder", "file") if path.is_dir() else ("file", "folder")
        raise CheckpointExistsError(
            f"{target} is a {kinds[0]}, and a {kinds[1]} would be written there. Name another DST.", folder=str(target)
        )
    foreign = _foreign(path) if path.is_dir() else []
    if foreign:
        raise CheckpointExistsError(
            f"{target} holds more than a checkpoint: {joined(foreign)}. --overwrite would delete it. Name another DST, "
            "or move it away.",
            folder=str(target),
        )


def _foreign(folder: Path) -> list[str]:
    names = sorted(path.name for path in folder.iterdir())
    return [name for name in names if name not in _OWN_NAMES and not name.endswith(_OWN_SUFFIXES)]


class Destination:
    """A local place that something is written for; a context manager, which removes what was not committed.

    Args:
        target: What it becomes.
        overwrite: Whether a checkpoint that is there is replaced.
        is_folder: Whether ``working`` is made a folder; else whoever writes makes it a file.

    Raises:
        CheckpointExistsError: See :func:`require_free`.
    """

    def __init__(self, target: Location, *, overwrite: bool, is_folder: bool) -> None:
        self._target = target
        self._overwrite = overwrite
        self._is_folder = is_folder
        self._id = new_save_id()
        self._undo = ExitStack()
        self.working = target.sibling(leftover_name(target.name, LeftoverKind.tmp, self._id))
        """Where it is written."""

    def __enter__(self) -> Self:
        remove_leftovers(self._target)
        require_free(self._target, overwrite=self._overwrite, is_folder=self._is_folder)
        with ExitStack() as undo:
            undo.callback(hold_save(self._target, self._id))
            if self._is_folder:
                self.working.backend.make_folder(self.working.path)
            undo.callback(self.working.backend.remove, self.working.path)
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def commit(self) -> None:
        """Give what was written, durably, its name.

        Raises:
            CheckpointExistsError: Something appeared there in the meantime.
        """
        backend, target = self._target.backend, self._target
        _sync(self.working.path)
        require_free(target, overwrite=self._overwrite, is_folder=self._is_folder)
        old = target.sibling(leftover_name(target.name, LeftoverKind.old, self._id))
        replaces = self._is_folder and Path(target.path).exists()
        if replaces:
            backend.rename_folder(target.path, old.path)
        try:
            # A file takes the place of another at once.
            backend.rename_folder(self.working.path, target.path)
        except BaseException:
            if replaces:
                backend.rename_folder(old.path, target.path)
            raise
        if replaces:
            backend.remove(old.path)


def _sync(path: str) -> None:
    """Make the content of a file, or the names in a folder, durable."""
    calls = SystemCalls()
    descriptor = calls.open(path, os.O_RDONLY)
    try:
        calls.fsync(descriptor)
    finally:
        calls.close(descriptor)


def remove_leftovers(target: Location) -> None:
    """Remove what killed conversions to ``target`` left; give what they were about to replace its name back."""
    for name in target.backend.list_names(target.parent.path):
        leftover = parse_leftover(name)
        if leftover is None or leftover.name != target.name or save_owner(target, leftover.save_id) is not None:
            continue
        place = target.sibling(name)
        if leftover.kind is LeftoverKind.old and not Path(target.path).exists():
            target.backend.rename_folder(place.path, target.path)
        else:
            target.backend.remove(place.path)
