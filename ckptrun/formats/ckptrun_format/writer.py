"""Writes a checkpoint of ckptrun with the engine's own parts: block by block, checksums included, one file."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import torch

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.commit import commit, hold_save, require_free, working_folder
from ckptrun.engine.layout import MANIFEST, LeftoverKind, leftover_name, new_save_id, shard_file_name
from ckptrun.engine.manifest import Chunk, Leaf, Manifest
from ckptrun.engine.shard_file import plan_file, require_storable_name
from ckptrun.engine.write_files import WrittenFile, write_files
from ckptrun.formats.ckptrun_format.reader import CkptrunSource
from ckptrun.formats.common.destination import remove_leftovers
from ckptrun.formats.common.destination import require_free as require_free_place
from ckptrun.formats.common.leaf_bytes import LeafBytes
from ckptrun.formats.common.selection import Advance, Item, Selection, Written
from ckptrun.values import encode

__all__ = ["write_ckptrun"]


def write_ckptrun(
    selection: Selection, target: Location, *, overwrite: bool, check: Callable[[Written], None], advance: Advance
) -> Written:
    """Write and commit a checkpoint; ``target`` may be any place that a save can go to.

    Args:
        selection: What is written.
        target: The folder that becomes the checkpoint.
        overwrite: Whether one that is there is replaced.
        check: Called before the commit; raises to prevent it.
        advance: Told what is done.

    Raises:
        UnsupportedLeafError: A leaf cannot be stored without pickle. Nothing has been written.
        CheckpointExistsError: Something is there, and may not be replaced.
        OSError: From the storage.
    """
    _require_storable(selection)
    if target.backend.renames_folders:
        remove_leftovers(target)
        require_free_place(target, overwrite=overwrite, is_folder=True)
    else:
        require_free(target, overwrite=overwrite)
    save_id = new_save_id()
    release = hold_save(target, save_id)
    working = working_folder(target, save_id)
    try:
        files = _write_tensors(selection, working, save_id, advance)
        manifest = _manifest(selection, files, save_id)
        written = Written(
            files=len(files) + 1,
            bytes=sum(file.file.bytes for file in files),
            left_out=(),
            open=lambda: CkptrunSource(working, manifest),
        )
        check(written)
        with _moved_away(target, save_id):
            commit(target, manifest)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove(working, save_id)
        raise
    finally:
        release()
    return written


@contextlib.contextmanager
def _moved_away(target: Location, save_id: str) -> Iterator[None]:
    """Make room where a checkpoint of another format stands, which a commit of ckptrun's own never replaces."""
    names = target.backend.list_names(target.path)
    if not target.backend.renames_folders or not names or MANIFEST in names:
        yield
        return
    old = target.sibling(leftover_name(target.name, LeftoverKind.old, save_id))
    target.backend.rename_folder(target.path, old.path)
    try:
        yield
    except BaseException:
        target.backend.rename_folder(old.path, target.path)
        raise
    target.backend.remove(old.path)


def _remove(working: Location, save_id: str) -> None:
    if working.backend.renames_folders:
        working.backend.remove(working.path)
    else:
        # Files of an earlier checkpoint lie beside it.
        working.backend.remove(working.child(shard_file_name(0, save_id=save_id)).path)


def _require_storable(selection: Selection) -> None:
    for item in selection.items:
        require_storable_name(item.name)
        if not item.is_tensor:
            encode(item.leaf.value, name=item.name)


def _write_tensors(selection: Selection, working: Location, save_id: str, advance: Advance) -> list[WrittenFile]:
    tensors = {item.name: item for item in selection.tensors}
    if not tensors:
        return []
    # Where folders are not renamed, files of an earlier save lie in the same one.
    name = shard_file_name(0, save_id=None if working.backend.renames_folders else save_id)
    plan = plan_file(name, [item.as_chunk() for item in tensors.values()], save_id=save_id)
    working.backend.make_folder(working.path)
    return write_files(
        working,
        [plan],
        lambda _, chunk: LeafBytes(selection, tensors[chunk.leaf], advance),
    )


def _manifest(selection: Selection, files: list[WrittenFile], save_id: str) -> Manifest:
    chunks = {name: chunk for file in files for name, chunk in file.chunks}
    return Manifest(
        save_id=save_id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        torch=str(torch.__version__),
        world_size=selection.origin.world_size,
        run=selection.origin.run,
        files={file.file.name: file.file for file in files},
        leaves={item.name: _leaf(item, chunks.get(item.name)) for item in selection.items},
        shared=selection.shared,
    )


def _leaf(item: Item, chunk: Chunk | None) -> Leaf:
    return Leaf(
        name=item.name,
        path=item.path,
        dtype=item.dtype,
        shape=item.leaf.shape,
        value=None if item.is_tensor else item.leaf.value,
        # A digest is of the bits that were live when the save was requested.
        digest=None if item.is_converted else item.leaf.digest,
        chunks=() if chunk is None else (chunk,),
    )
