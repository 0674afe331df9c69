"""Reads a checkpoint, or a part of it, into nothing: nested dicts with full tensors in host memory.

Works without a process group, and on any number of ranks that saved. For loading into existing tensors of any layout
there is ``ShardReader``. ``read_state`` is for whoever takes the engine alone and has files, but no job; ckptrun itself
reads single leaves.
"""

from collections.abc import Sequence
from typing import Any

from ckptrun.embedded import restore
from ckptrun.engine.backends.interface import Url
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import Leaf, Manifest, read_manifest
from ckptrun.engine.nested import Places
from ckptrun.engine.read_chunks import read_whole
from ckptrun.engine.read_files import ShardFiles
from ckptrun.errors import StateMismatchError

__all__ = ["read_leaf", "read_state"]

_SHOWN = 20


def read_state(url: Url, keys: Sequence[str] | None = None) -> dict[str, Any]:
    """Return the leaves under ``keys``, nested as they were saved; all of them without ``keys``.

    Tied tensors come back as tensors of their own, keys of dicts as text, and what holds leaves as plain dicts and
    lists. Parts of a list that were not asked for are None.

    Args:
        url: The folder of the checkpoint: a local path or any fsspec URL.
        keys: Each is the name of a leaf, or of what holds leaves: ``optimizer.state``.

    Raises:
        CheckpointNotFoundError: There is no checkpoint.
        StateMismatchError: Nothing in it is called so; or a leaf is only partly in it.
        CheckpointDamagedError: It cannot be trusted.
    """
    folder = locate(url)
    manifest = read_manifest(folder)
    leaves = list(manifest.leaves.values()) if keys is None else _under(manifest, keys, str(folder))
    state: dict[str, Any] = {}
    places = Places(state)
    with ShardFiles(folder, manifest.files) as files:
        for leaf in leaves:
            places.put(leaf.path, _read(files, leaf))
    return state


def read_leaf(url: Url, name: str) -> Any:
    """Return the tensor or plain value of leaf ``name``; raises as :func:`read_state` does."""
    folder = locate(url)
    manifest = read_manifest(folder)
    if name not in manifest.leaves:
        raise StateMismatchError(f"{folder} holds no leaf '{name}'.", leaves=[name], folder=str(folder))
    with ShardFiles(folder, manifest.files) as files:
        return _read(files, manifest.leaves[name])


def _read(files: ShardFiles, leaf: Leaf) -> Any:
    return read_whole(files, leaf) if leaf.is_tensor else restore(leaf.value, name=leaf.name)


def _under(manifest: Manifest, keys: Sequence[str], folder: str) -> list[Leaf]:
    wanted = set([keys] if isinstance(keys, str) else keys)
    names = {leaf.name: _names_of(leaf) for leaf in manifest.leaves.values()}
    missing = sorted(wanted - set().union(*names.values()))
    if missing:
        top = sorted({str(leaf.path[0]) for leaf in manifest.leaves.values()})
        raise StateMismatchError(
            f"{folder} holds no leaf '{missing[0]}' and nothing under that name; at the top there are: "
            f"{', '.join(top[:_SHOWN])}.",
            leaves=missing,
            folder=folder,
        )
    return [leaf for leaf in manifest.leaves.values() if names[leaf.name] & wanted]


def _names_of(leaf: Leaf) -> set[str]:
    """The leaf's name, and those of everything that holds it."""
    elements = [str(element) for element in leaf.path]
    return {leaf.name, *(".".join(elements[:count]) for count in range(1, len(elements) + 1))}
