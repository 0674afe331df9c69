"""What a path on the command line stands for: a checkpoint, or a folder of checkpoints. Must not import torch."""

import contextlib

import yaml

from ckptrun.engine.backends.interface import Location, read_file
from ckptrun.engine.commit import is_committed, list_committed, list_in_flight, list_leftovers
from ckptrun.engine.layout import step_name
from ckptrun.engine.locate import place_of
from ckptrun.errors import CheckpointNotFoundError, ConfigError
from ckptrun.evidence.run_folder import CHECKPOINTS, CONFIG
from ckptrun.text import joined

__all__ = ["checkpoints_in", "is_foreign", "newest_of", "root_at", "runs_in", "steps_of"]

_MAX_CONFIG_BYTES = 2**20
_SHOWN = 8
# outputs, experiment, sweep, cell
_DEPTH = 4
_MOST_NAMES = 2000


def root_at(place: Location) -> Location | None:
    """Return the folder of checkpoints that ``place`` is or, being a run, has.

    None when it is a checkpoint itself, or a folder of runs.

    Raises:
        CheckpointNotFoundError: It is neither; says what is there.
    """
    if is_committed(place):
        return None
    root = _root_of(place)
    if root is not None:
        return root
    if runs_in(place):
        return None
    names = place.backend.list_names(place.path)
    what = f"there are: {joined(names, _SHOWN)}" if names else "it does not exist, is empty, or is no folder"
    elsewhere = f" By its config.yaml it keeps them at {_elsewhere(place)}, where there are none."
    raise CheckpointNotFoundError(
        f"{place} is no checkpoint (it has no manifest.json), no run and no folder of checkpoints; {what}."
        f"{elsewhere if _elsewhere(place) else ''}",
        folder=str(place),
    )


def _root_of(place: Location) -> Location | None:
    places = [place, place.child(CHECKPOINTS)]
    elsewhere = _elsewhere(place)
    if elsewhere is not None:
        with contextlib.suppress(ConfigError):
            places.append(place_of(elsewhere))
    return next((root for root in places if list_committed(root) or list_leftovers(root) or list_in_flight(root)), None)


def _elsewhere(run: Location) -> str | None:
    """Where a run keeps its checkpoints by its ``config.yaml``; None where it does not say, or there is no run."""
    try:
        size = min(run.backend.size(run.child(CONFIG).path), _MAX_CONFIG_BYTES)
        config = yaml.safe_load(read_file(run.child(CONFIG), size))
    except (OSError, yaml.YAMLError, RecursionError, ValueError):
        return None
    section = config.get("checkpoint") if isinstance(config, dict) else None
    path = section.get("path") if isinstance(section, dict) else None
    return path if isinstance(path, str) and path else None


def is_foreign(place: Location) -> bool:
    """Whether it is a file, or a folder that holds a checkpoint of another format than ckptrun's."""
    names = place.backend.list_names(place.path)
    if not names:
        try:
            place.backend.size(place.path)
        except OSError:
            return False
        return not place.backend.list_names(place.path)
    if is_committed(place) or "manifest.json" in names or _root_of(place) is not None:
        return False
    from ckptrun.formats.common.part_names import TORCH_SUFFIXES, is_index_name

    return ".metadata" in names or any(
        name.endswith((".safetensors", *TORCH_SUFFIXES)) or is_index_name(name) for name in names
    )


def runs_in(place: Location) -> list[Location]:
    """Return the runs in a folder of runs (``outputs``, an experiment, a sweep), by name; a few levels down."""
    found: list[Location] = []
    waiting = [(place, 0)]
    while waiting:
        folder, depth = waiting.pop()
        names = folder.backend.list_names(folder.path)
        if depth and CONFIG in names and _root_of(folder) is not None:
            found.append(folder)
        elif depth < _DEPTH and len(names) <= _MOST_NAMES:
            waiting.extend((folder.child(name), depth + 1) for name in names if "." not in name[:1])
    return sorted(found, key=lambda run: run.path)


def newest_of(place: Location, *, step: int | None = None) -> Location | None:
    """Return the newest checkpoint of a run or folder of checkpoints, or that of ``step``; None where it is none.

    Raises:
        CheckpointNotFoundError: It has none of that step; or it is a folder of runs, which are named.
    """
    if place.backend.list_names(place.path) == [] or is_committed(place):
        return None
    root = _root_of(place)
    steps = list_committed(root) if root is not None else []
    if root is None or not steps:
        _refuse_runs(place)
        return None
    if step is not None and step not in steps:
        raise CheckpointNotFoundError(
            f"{root} has no checkpoint of step {step}; it has {', '.join(map(str, steps))}.", folder=str(root)
        )
    return root.child(step_name(steps[-1] if step is None else step))


def steps_of(place: Location) -> list[int]:
    """Return the steps of a run or folder of checkpoints; none for anything else."""
    root = None if is_committed(place) else _root_of(place)
    return [] if root is None else list_committed(root)


def _refuse_runs(place: Location) -> None:
    names = place.backend.list_names(place.path)
    runs = runs_in(place) if len(names) <= _MOST_NAMES and not any("." in name[1:] for name in names[:_SHOWN]) else []
    if runs:
        raise CheckpointNotFoundError(
            f"{place} is a folder of {len(runs)} runs; name one, such as {runs[0]}.", folder=str(place)
        )


def checkpoints_in(root: Location) -> list[Location]:
    """Return the committed checkpoints, oldest first."""
    return [root.child(step_name(step)) for step in list_committed(root)]
