"""Fills the components of a run from a checkpoint: what is loaded, what must be there, what must fit.

Order of a load, on every rank: rank 0 reads the manifest, once, and gives it to all; leaves are matched by name, dtype
and shape before a byte of data is read; tensors are filled in place; each component takes its part, ``rng`` last.
"""

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import load as load_tensors

from ckptrun.checkpoint.failed_rank import first_failure
from ckptrun.config.checkpoint import LoadSelection
from ckptrun.config.fault import FaultPoint, Reached, no_point
from ckptrun.engine.consistency import require_consistent
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import Manifest, read_manifest
from ckptrun.engine.storage import ShardReader
from ckptrun.errors import CheckpointError, ConfigError, StateMismatchError
from ckptrun.ranks import Ranks
from ckptrun.state.components import Path, SavedLeaf, TrainingState, is_per_rank, name_of

__all__ = ["Loaded", "load", "saved_manifest"]

_SHOWN = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What a load did on this rank."""

    folder: str
    step: int
    digests: Mapping[str, str]
    """Leaf name -> digest at the request of the save, for the leaves loaded here that have one."""
    loaded_leaves: int
    world_size: int
    """On how many ranks it was saved."""
    left_out: tuple[str, ...]
    """Components of the run that were not loaded."""
    run: Mapping[str, Any]
    """What the manifest says of the run that saved it."""


def load(  # noqa: PLR0913  # all but the first two by name
    state: TrainingState,
    folder: str,
    *,
    ranks: Ranks,
    group: dist.ProcessGroup | None,
    selection: LoadSelection,
    manifest: Manifest | None = None,
    reached: Reached = no_point,
) -> Loaded:
    """Load the checkpoint in ``folder`` into ``state``. All ranks call.

    ``manifest`` is what :func:`saved_manifest` gave for it, where somebody has asked before.

    On another number of ranks, leaves that belong to one rank (random streams, loader workers) are left out: ``rng``
    keeps its fresh streams, ``data`` goes on from the global position.

    Raises:
        CheckpointNotFoundError: There is no committed checkpoint.
        StateMismatchError: Leaves are missing, unexpected, or of another dtype or shape; names them.
        CheckpointDamagedError: What lies there is not what was written.
        ConfigError: The selection names a component that neither side has.
    """
    manifest = manifest or saved_manifest(folder, ranks)
    saved = _saved_leaves(manifest)
    resized = manifest.world_size != ranks.world_size
    wanted = _wanted(state, {path[0] for path in saved}, selection, resized=resized)
    chosen = {path: leaf for path, leaf in saved.items() if path[0] in wanted and not (resized and is_per_rank(path))}
    templates = state.templates({name: [leaf for path, leaf in chosen.items() if path[0] == name] for name in wanted})
    matched = _match(templates, chosen, selection, folder=folder, resized=resized)
    _read(matched, folder, manifest=manifest, group=group, distributed=ranks.distributed)
    # A checkpoint that no run has saved, but a tool or a user, has no step.
    step = int(manifest.run.get("step", 0))
    reached(FaultPoint.loading, step)
    saved_digests = ((name_of(path), manifest.leaves[name_of(path)].digest) for path in matched)
    digests = [(name, digest) for name, digest in saved_digests if digest is not None]
    # Leaves that the checkpoint need not have stay as they are; components want to see all of theirs.
    kept = {path: value for path, value in templates.items() if path not in matched and not is_per_rank(path)}
    state.load({**kept, **matched}, manifest.containers or {})
    return Loaded(
        folder=folder,
        step=step,
        world_size=manifest.world_size,
        digests=dict(digests),
        loaded_leaves=len(matched),
        left_out=tuple(name for name in state.components if name not in wanted),
        run=manifest.run,
    )


def saved_manifest(folder: str, ranks: Ranks) -> Manifest:
    """The manifest of ``folder``, which contradicts neither itself nor its place; rank 0 reads it. All ranks call.

    Raises:
        CheckpointNotFoundError: There is no committed checkpoint.
        CheckpointDamagedError: It cannot be trusted.
    """
    return ranks.decide(lambda: _consistent_manifest(folder))


def _consistent_manifest(folder: str) -> Manifest:
    manifest = read_manifest(folder)
    require_consistent(manifest, locate(folder).name, place=folder)
    return manifest


def _saved_leaves(manifest: Manifest) -> dict[Path, SavedLeaf]:
    found: dict[Path, SavedLeaf] = {}
    for leaf in manifest.leaves.values():
        # What a file of another format held was flat: its names alone say which component a leaf is of.
        path: Path = leaf.path if len(leaf.path) > 1 else tuple(str(leaf.path[0]).split(".", 1))
        dtype = None if leaf.dtype is None else getattr(torch, leaf.dtype)
        found[path] = SavedLeaf(path=path, dtype=dtype, shape=tuple(leaf.shape or ()), value=leaf.value)
    return found


def _wanted(state: TrainingState, saved: Iterable[str | int], selection: LoadSelection, *, resized: bool) -> list[str]:
    """Components to load, in the order of the state. A component that only one side has is an error unless excluded."""
    saved_names = {str(name) for name in saved}
    known = saved_names | set(state.components)
    for key, names in (("only", selection.only), ("exclude", selection.exclude)):
        for name in names:
            if name not in known:
                raise ConfigError(
                    f"checkpoint.load.{key} names the component {name!r}; there are: {', '.join(sorted(known))}."
                )
    live = [name for name in state.components if selection.takes(name)]
    missing = [name for name in live if name not in saved_names]
    extra = sorted(name for name in saved_names if selection.takes(name) and name not in state.components)
    if missing or extra:
        which, where = (missing, "the checkpoint lacks it") if missing else (extra, "this run has none")
        raise StateMismatchError(
            f"Component '{which[0]}' cannot be loaded: {where}. "
            f"Leave it out with 'checkpoint.load.exclude=[{','.join(missing + extra)}]', or change the config so that "
            "both have it.",
            leaves=missing + extra,
        )
    return [name for name in live if not (resized and name == "rng")]


def _match(
    templates: Mapping[Path, Any],
    saved: Mapping[Path, SavedLeaf],
    selection: LoadSelection,
    *,
    folder: str,
    resized: bool,
) -> dict[Path, Any]:
    """Path -> what to fill (tensor) or the value itself; only leaves that both sides have."""
    missing = [name_of(path) for path in templates if path not in saved and not (resized and is_per_rank(path))]
    extra = [name_of(path) for path in saved if path not in templates and not is_per_rank(path)]
    _refuse("does not hold", _not_allowed(missing, selection.allow_missing), folder, "allow_missing", selection)
    _refuse(
        "holds, and this run has no place for,",
        _not_allowed(extra, selection.allow_extra),
        folder,
        "allow_extra",
        selection,
    )
    matched: dict[Path, Any] = {}
    for path, template in templates.items():
        if path not in saved:
            continue
        leaf = saved[path]
        _check_kind(name_of(path), template, leaf, folder)
        matched[path] = template if isinstance(template, Tensor) else leaf.value
    return matched


def _not_allowed(names: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """Names that no pattern covers; a pattern may or may not start with the component."""
    return [
        name
        for name in names
        if not any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(name.partition(".")[2], p) for p in patterns)
    ]


def _refuse(what: str, names: Sequence[str], folder: str, key: str, selection: LoadSelection) -> None:
    if not names:
        return
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    way_out = (
        f"Name them in checkpoint.load.{key}."
        if selection.source is not None
        else "It is a checkpoint of another model, optimizer or component: use the config it was saved with, another "
        "run.name, or checkpoint.load.from to start from its weights only."
    )
    raise StateMismatchError(f"The checkpoint {folder} {what} {shown}. {way_out}", leaves=names, folder=folder)


def _check_kind(name: str, template: Any, leaf: SavedLeaf, folder: str) -> None:
    if isinstance(template, Tensor) != (leaf.dtype is not None):
        here, there = ("a tensor", "a plain value") if isinstance(template, Tensor) else ("a plain value", "a tensor")
        raise StateMismatchError(
            f"Leaf '{name}' is {here} in this run but {there} in {folder}.", leaves=[name], folder=folder
        )
    if not isinstance(template, Tensor):
        return
    kinds: tuple[tuple[str, Any, Any], ...] = (
        ("dtype", template.dtype, leaf.dtype),
        ("shape", tuple(template.shape), leaf.shape),
    )
    for what, mine, saved in kinds:
        if mine != saved:
            raise StateMismatchError(
                f"Leaf '{name}' has {what} {mine} in this run but {saved} in {folder}; nothing is converted silently. "
                "Use the config it was saved with.",
                leaves=[name],
                folder=folder,
            )


def _read(
    matched: Mapping[Path, Any],
    folder: str,
    *,
    manifest: Manifest,
    group: dist.ProcessGroup | None,
    distributed: bool,
) -> None:
    tensors = {name_of(path): value.detach() for path, value in matched.items() if isinstance(value, Tensor)}
    try:
        load_tensors(
            tensors,
            storage_reader=ShardReader(folder, manifest=manifest),
            planner=DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
            process_group=group,
            no_dist=not distributed,
        )
    except CheckpointException as error:
        rank, cause = first_failure(error)
        raise CheckpointError(
            f"Loading {folder} failed on rank {rank}: {type(cause).__name__}: {cause}.", folder=folder
        ) from error
