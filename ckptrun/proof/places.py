"""Where the legs of a proof put their checkpoints: on a local path or any URL alike. Torch-free.

``checkpoint.path`` is that of the run under proof; the other legs have ``<checkpoint.path>/proof/<leg>``. A leg begins
with an empty place: what an earlier proof has left there would be resumed from.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path

from ckptrun.config.checkpoint import is_remote
from ckptrun.engine.backends.interface import Location, read_file
from ckptrun.engine.commit import list_committed, remove_checkpoint, remove_leftovers
from ckptrun.engine.layout import MANIFEST, step_folder
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import read_manifest
from ckptrun.errors import ConfigError

__all__ = ["clear_checkpoints", "clear_place", "keep_copies", "leaf_names", "place_beside"]

_LEGS = "proof"
_BLOCK_BYTES = 16 * 2**20


def place_beside(path: str, leg: str) -> str:
    """Where another leg of the proof puts its checkpoints, beside those in ``path``."""
    return f"{path.rstrip('/')}/{_LEGS}/{leg}"


def clear_place(root: str) -> None:
    """Remove all that lies in the place of a leg beside the run under proof."""
    place = locate(root)
    if place.backend.list_names(place.path):
        place.backend.remove(place.path)


def clear_checkpoints(root: str, *, is_ours: bool) -> None:
    """Remove what an earlier proof has left in ``checkpoint.path``, of all its legs.

    Args:
        root: The path or URL.
        is_ours: Whether an earlier proof in the same run folder has put its checkpoints there.

    Raises:
        ConfigError: There is something, and it is not known to be a proof's; or the place cannot be read.
    """
    try:
        steps, legs = list_committed(root), locate(f"{root.rstrip('/')}/{_LEGS}")
        others = legs.backend.list_names(legs.path)
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(f"checkpoint.path={root} cannot be read: {error}.") from error
    if (steps or others) and not is_ours:
        what = f"steps {', '.join(map(str, steps))}" if steps else f"{_LEGS}/{others[0]}"
        raise ConfigError(
            f"checkpoint.path={root} holds checkpoints that this proof has not made ({what}). Give the proof a place "
            "of its own."
        )
    if is_ours:
        remove_leftovers(root)
    for step in steps:
        remove_checkpoint(root, step)
    if others:
        legs.backend.remove(legs.path)


def leaf_names(checkpoint: str) -> list[str]:
    """The names of all leaves of a checkpoint."""
    return list(read_manifest(checkpoint).leaves)


def keep_copies(root: str, into: Path) -> Iterator[tuple[str, str]]:
    """Copy the checkpoints in ``root`` to local folders that nobody removes; yield each one's place and its copy's.

    One that was copied before is not copied again, unless another save has taken its place.
    """
    for step in list_committed(root):
        folder = locate(step_folder(root, step))
        copy = into / folder.name
        if not (copy / MANIFEST).exists() or _manifest(folder) != (copy / MANIFEST).read_bytes():
            shutil.rmtree(copy, ignore_errors=True)
            beside = copy.with_name(f"{copy.name}.partial")
            shutil.rmtree(beside, ignore_errors=True)
            if is_remote(root):
                _download(folder, beside)
            else:
                shutil.copytree(folder.path, beside)
            beside.rename(copy)
        yield str(folder), str(copy)


def _manifest(folder: Location) -> bytes:
    file = folder.child(MANIFEST)
    return read_file(file, file.backend.size(file.path))


def _download(folder: Location, into: Path) -> None:
    into.mkdir(parents=True)
    for name in folder.backend.list_names(folder.path):
        file = folder.child(name)
        reader = file.backend.open(file.path)
        try:
            size, block = file.backend.size(file.path), bytearray(_BLOCK_BYTES)
            with (into / name).open("wb") as target:
                for offset in range(0, size, _BLOCK_BYTES):
                    count = reader.read(offset, [memoryview(block)[: min(_BLOCK_BYTES, size - offset)]])
                    target.write(memoryview(block)[:count])
        finally:
            reader.close()
