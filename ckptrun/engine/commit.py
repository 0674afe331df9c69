"""How a checkpoint becomes visible, at once or not at all; and how it, and what a killed save left, is removed.

Order of events where folders can be renamed (local file systems):

1. every rank writes its shard files under ``<name>.tmp-<save id>/`` and syncs them;
2. when all ranks are done, rank 0 checks that it sees all files, and writes and syncs the manifest beside them;
3. the folder is renamed to ``<name>`` and its parent synced. This is the commit.

To overwrite, ``<name>`` is renamed to ``<name>.old-<save id>`` right before step 3 and deleted right after. A kill
between the two renames leaves no ``<name>``, but both versions whole: ``remove_leftovers`` gives the old one its name
back, because the new save was never reported as done. What lies in the old one and was not written by a save, such as
a config or a tokenizer that a user put there, moves over before it is deleted, by whoever deletes it.

Order on object stores, which cannot rename: shard files go to ``<name>/`` first, under names that hold the save id, so
they never replace those of an earlier save; the manifest is put last, which is the commit, and replaces an older one at
once. Then files that it does not name are deleted.

As long as the process that leads a save lives, it holds a lock file, so that nobody takes the save for a leftover. The
lock comes before the first file and goes after the commit.

Removing goes the other way: first the checkpoint stops being one (rename, or manifest), then its files go.

Must not know torch. No function here is a collective; rank 0 alone calls them.
"""

import contextlib
from collections.abc import Callable, Container, Iterator

from ckptrun.engine.backends.interface import Location, Url, write_file
from ckptrun.engine.backends.owner import describe, note_of_this_process
from ckptrun.engine.layout import (
    MANIFEST,
    LeftoverKind,
    is_shard_file_name,
    leftover_name,
    lock_name,
    new_save_id,
    parse_leftover,
    parse_save_file,
    parse_step,
    step_name,
)
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import Manifest, check, read_manifest, to_bytes
from ckptrun.engine.points import PointHook, untold
from ckptrun.errors import CheckpointError, CheckpointExistsError, CheckpointNotFoundError, ManifestError

__all__ = [
    "commit",
    "hold_save",
    "is_committed",
    "list_committed",
    "list_in_flight",
    "list_leftovers",
    "remove_checkpoint",
    "remove_leftovers",
    "require_free",
    "save_owner",
    "working_folder",
]


def require_free(target: Location, *, overwrite: bool) -> None:
    """Check, before anything is written, that a checkpoint may be committed as ``target``.

    Raises:
        CheckpointExistsError: One is there and ``overwrite`` is False.
        CheckpointError: Something else is there, which is never overwritten.
    """
    if is_committed(target):
        if not overwrite:
            raise CheckpointExistsError(
                # The first three words are DCP's own: there are callers that look for them.
                f"Checkpoint already exists: {target} is committed. Save to another folder, or pass overwrite=True to "
                "replace it.",
                folder=str(target),
            )
        return
    names = target.backend.list_names(target.path)
    if target.backend.renames_folders and names:
        raise CheckpointError(
            f"{target} exists, is not a checkpoint (it has no {MANIFEST}), and holds {len(names)} entries such as "
            f"'{names[0]}'. Save to another folder, or move it away.",
            folder=str(target),
        )


def is_committed(target: Location) -> bool:
    """Whether ``target`` is a checkpoint: whether it has a manifest."""
    return MANIFEST in target.backend.list_names(target.path)


def working_folder(target: Location, save_id: str) -> Location:
    """Return where the files of a save are written before its commit."""
    if not target.backend.renames_folders:
        return target
    return target.sibling(leftover_name(target.name, LeftoverKind.tmp, save_id))


def commit(target: Location, manifest: Manifest, *, reached: PointHook = untold) -> None:
    """Make the files of a save, which all ranks have written, a checkpoint.

    Raises:
        CheckpointError: A file that a rank has written is not there, seen from here.
        ManifestError: The manifest would be one that no reader accepts.
        OSError: From the storage. ``target`` is as it was, as far as the storage still obeys.
    """
    working = working_folder(target, manifest.save_id)
    _require_files(working, manifest)
    reached("before_manifest")
    if target.backend.renames_folders:
        _write_manifest(working, manifest)
        reached("before_commit")
        _swap(target, working, manifest.save_id, reached)
    else:
        reached("before_commit")
        _write_manifest(target, manifest)
        _remove_orphans(target, manifest, reached)
    reached("after_commit")


def _write_manifest(folder: Location, manifest: Manifest) -> None:
    # Better no checkpoint now than one that no reader accepts later.
    check(manifest)
    raw = to_bytes(manifest)
    # A state without tensors has no shard file, and so no folder yet.
    folder.backend.make_folder(folder.path)
    write_file(folder.child(MANIFEST), raw)


def _require_files(working: Location, manifest: Manifest) -> None:
    """Find files that went to another machine's disk, before the manifest says that they are here."""
    for file in manifest.files.values():
        place = working.child(file.name)
        try:
            size = place.backend.size(place.path)
        except FileNotFoundError:
            size = -1
        if size != file.bytes:
            found = "is not there" if size < 0 else f"has {size} bytes"
            raise CheckpointError(
                f"{place} {found}, though its rank wrote {file.bytes} bytes. All ranks must see the same storage.",
                folder=str(working),
            )


def _swap(target: Location, working: Location, save_id: str, reached: PointHook) -> None:
    backend = target.backend
    old = target.sibling(leftover_name(target.name, LeftoverKind.old, save_id))
    replaces = is_committed(target)
    try:
        if replaces:
            backend.rename_folder(target.path, old.path)
            reached("during_swap")
        backend.rename_folder(working.path, target.path)
    except OSError:
        # What was not renamed stands in the way, so only what was renamed goes back.
        for new, former in ((target, working), (old, target)):
            with contextlib.suppress(OSError):
                backend.rename_folder(new.path, former.path)
        raise
    if replaces:
        # The checkpoint counts without it; what stays is a leftover.
        with contextlib.suppress(OSError):
            _remove_old(old, target)


def _remove_old(old: Location, target: Location) -> None:
    """Delete what an overwrite moved away, after what is not of a checkpoint has moved to what took its place."""
    taken = target.backend.list_names(target.path)
    for name in old.backend.list_names(old.path):
        if name != MANIFEST and not is_shard_file_name(name) and name not in taken:
            old.backend.rename_folder(old.child(name).path, target.child(name).path)
    old.backend.remove(old.path)


def _remove_orphans(target: Location, manifest: Manifest, reached: PointHook) -> None:
    orphans = [name for name in _orphans(target, manifest.files) if parse_save_file(name) != manifest.save_id]
    if orphans:
        reached("during_swap")
    for name in orphans:
        _discard(target.child(name))


def _discard(replaced: Location) -> None:
    # The checkpoint counts without it; what stays is a leftover.
    with contextlib.suppress(OSError):
        replaced.backend.remove(replaced.path)


def _orphans(target: Location, files: Container[str]) -> list[str]:
    """Names in ``target``, on an object store, that belong to no checkpoint and to no save that lives."""
    found = []
    for name in target.backend.list_names(target.path):
        save_id = parse_save_file(name)
        if save_id is not None and name not in files and save_owner(target, save_id) is None:
            found.append(name)
    return found


def hold_save(target: Location, save_id: str) -> Callable[[], None]:
    """Keep others from taking a save for a leftover, until the result is called or this process dies. Rank 0 calls."""
    lock = _lock_of(target, save_id)
    lock.backend.make_folder(lock.parent.path)
    return lock.backend.hold(lock.path, note_of_this_process())


def save_owner(target: Location, save_id: str) -> str | None:
    """Return who is writing a save of ``target``, for people; None when nobody is."""
    lock = _lock_of(target, save_id)
    note = lock.backend.holder(lock.path)
    return None if note is None else describe(note)


def _lock_of(target: Location, save_id: str) -> Location:
    in_folder = not target.backend.renames_folders
    name = lock_name(target.name, save_id, in_folder=in_folder)
    return target.child(name) if in_folder else target.sibling(name)


def list_committed(root: Url) -> list[int]:
    """Return the steps under ``root`` that have a manifest, ascending. Does not read them."""
    folder = locate(root)
    steps = (parse_step(name) for name in folder.backend.list_names(folder.path))
    return sorted(step for step in steps if step is not None and is_committed(folder.child(step_name(step))))


def list_leftovers(root: Url) -> list[str]:
    """Return the names under ``root`` that killed or failed saves and removals left, sorted.

    What belongs to a save whose leading process lives is not among them.
    """
    folder = locate(root)
    return sorted(name for name, owner in _leftovers(folder) if owner is None)


def list_in_flight(root: Url) -> dict[str, str]:
    """Return the names under ``root`` that belong to saves in flight, each with who is writing it."""
    folder = locate(root)
    return {name: owner for name, owner in sorted(_leftovers(folder)) if owner is not None}


def _leftovers(folder: Location) -> Iterator[tuple[str, str | None]]:
    """Names, and who is writing them. A lock file counts with the folder that it is for."""
    names = folder.backend.list_names(folder.path)
    for name in names:
        leftover = parse_leftover(name)
        if leftover is not None:
            if leftover.kind is not LeftoverKind.lock or name.removesuffix(".lock") not in names:
                yield name, save_owner(folder.child(leftover.name), leftover.save_id)
        elif parse_step(name) is not None and not folder.backend.renames_folders:
            yield from _remote_leftovers(folder, name)


def _remote_leftovers(folder: Location, name: str) -> Iterator[tuple[str, str | None]]:
    """On an object store what is left of a save lies in the final folder."""
    step = folder.child(name)
    try:
        files: Container[str] = read_manifest(step).files
    except CheckpointNotFoundError:
        files = ()
    except ManifestError:
        # Damaged, so nobody knows which files belong to it: a user may still save some.
        return
    for file in step.backend.list_names(step.path):
        save_id = parse_save_file(file)
        if save_id is not None and file not in files:
            yield f"{name}/{file}", save_owner(step, save_id)


def remove_leftovers(root: Url) -> list[str]:
    """Remove what :func:`list_leftovers` lists; return the removed names.

    The old version of an overwrite that was cut between its renames gets its name back instead. Call before
    :func:`list_committed` at the start of a run. Saves in flight, of this process or another, are left alone.
    """
    folder = locate(root)
    removed = []
    for name in list_leftovers(folder):
        if not _restore(folder, name):
            _remove_leftover(folder, name)
            removed.append(name)
    return removed


def _remove_leftover(folder: Location, name: str) -> None:
    leftover, place = parse_leftover(name), folder.child(name)
    if leftover is not None and leftover.kind is LeftoverKind.old:
        target = folder.child(leftover.name)
        # A checkpoint of another format, which a conversion has replaced, has no manifest and only files of its own.
        if is_committed(target) and is_committed(place):
            _remove_old(place, target)
            return
    place.backend.remove(place.path)
    if leftover is not None and leftover.kind is LeftoverKind.tmp:
        place.backend.remove(_lock_of(folder.child(leftover.name), leftover.save_id).path)


def _restore(folder: Location, name: str) -> bool:
    leftover = parse_leftover(name)
    if leftover is None or leftover.kind is not LeftoverKind.old:
        return False
    old, target = folder.child(name), folder.child(leftover.name)
    if is_committed(target) or not is_committed(old):
        return False
    folder.backend.rename_folder(old.path, target.path)
    return True


def remove_checkpoint(root: Url, step: int, *, reached: PointHook = untold) -> None:
    """Remove a committed checkpoint. A kill in between leaves a leftover, never half a checkpoint.

    Args:
        root: What holds it.
        step: Its step.
        reached: Told of ``removing``.

    Raises:
        CheckpointNotFoundError: There is none of this step.
    """
    folder = locate(root)
    target = folder.child(step_name(step))
    if not is_committed(target):
        steps = ", ".join(map(str, list_committed(folder))) or "none"
        raise CheckpointNotFoundError(
            f"No committed checkpoint of step {step} in {folder} (committed steps: {steps}).", folder=str(target)
        )
    if not folder.backend.renames_folders:
        folder.backend.remove(target.child(MANIFEST).path)
        reached("removing")
        folder.backend.remove(target.path)
        return
    gone = target.sibling(leftover_name(target.name, LeftoverKind.gone, new_save_id()))
    folder.backend.rename_folder(target.path, gone.path)
    reached("removing")
    folder.backend.remove(gone.path)
