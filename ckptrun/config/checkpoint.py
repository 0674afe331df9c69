"""Group ``checkpoint``: when the state is saved, how, where, and what is loaded."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ckptrun.config.ranges import at_least, named_pattern_list
from ckptrun.errors import ConfigError

__all__ = ["CheckpointConfig", "LoadSelection", "SaveMode", "is_remote"]


class SaveMode(StrEnum):
    """Who writes, and what the loop waits for."""

    none = "none"
    """Nothing is saved."""
    sync = "sync"
    """The loop waits for the commit."""
    async_thread = "async_thread"
    """The loop waits for staging; a thread writes and commits. The choice is ``checkpoint=async``."""
    async_process = "async_process"
    """The loop waits for staging; a process beside each rank writes and commits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSelection:
    """Which part of a checkpoint is loaded; see ``CheckpointConfig.load``."""

    only: Sequence[str] = ()
    exclude: Sequence[str] = ()
    source: str | None = None
    allow_missing: Sequence[str] = ()
    allow_extra: Sequence[str] = ()

    def takes(self, component: str) -> bool:
        """Whether ``component`` is loaded."""
        return (not self.only or component in self.only) and component not in self.exclude


_LOAD_KEYS: dict[str, Any] = {"only": [], "exclude": [], "from": None, "allow_missing": [], "allow_extra": []}


def _load_defaults() -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in _LOAD_KEYS.items()}


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """When the state is saved, how, where, and what is loaded."""

    mode: SaveMode = SaveMode.sync
    """Set by the choice: ``checkpoint=async``."""
    path: str | None = None
    """Folder of the checkpoints: a local path or any fsspec URL; unset: ``<run.dir>/checkpoints``."""
    interval_steps: int = 20
    """Save after every so many steps; the last step is always saved."""
    keep_last: int | None = None
    """Keep so many of the newest checkpoints; unset: all. The newest is never removed."""
    cached_staging: bool = True
    """Reuse host buffers from save to save."""
    overlapped_staging: bool = False
    """Copy to host memory beside the next step, up to where the state may change: the optimizer step, but the beginning
    of the step where code of yours runs in it; only async modes."""
    resume: int | str = "auto"
    """``auto``: the newest committed checkpoint, if any; ``none``: start anew; a step of this run; or the path of a
    checkpoint, a run or a folder of checkpoints, which counts until this run has a checkpoint of its own."""
    overwrite: bool = False
    """Allow that checkpoints of later steps are removed when ``resume`` goes back before them."""
    load: dict[str, Any] = field(default_factory=_load_defaults)
    """What is loaded:

    - ``only``, ``exclude``: components by name, e.g. ``checkpoint.load.exclude=[rng]``;
    - ``from``: a checkpoint (or a run's folder) of another run: its model is the start of this one (fine-tuning);
    - ``allow_missing``: patterns of leaves of this run that ``from`` need not have (a new head);
    - ``allow_extra``: patterns of leaves of ``from`` that this run has no place for (the old head).
    """

    def __post_init__(self) -> None:
        at_least("checkpoint.interval_steps", self.interval_steps, 1)
        at_least("checkpoint.keep_last", self.keep_last, 1)
        unknown = sorted(set(self.load) - set(_LOAD_KEYS))
        if unknown:
            raise ConfigError(f"checkpoint.load has no key {unknown[0]!r}; keys: {', '.join(_LOAD_KEYS)}.")
        for key in ("only", "exclude", "allow_missing", "allow_extra"):
            value = self.load.get(key) or []
            if isinstance(value, str) or not all(isinstance(item, str) for item in value):
                raise ConfigError(f"checkpoint.load.{key} must be a list of names, e.g. [model], got {value!r}.")
            named_pattern_list(f"checkpoint.load.{key}", value)
        counters = sorted({"progress", "data"} & set(self.load.get("only") or ()))
        if self.load.get("from") is not None and counters:
            raise ConfigError(
                f"checkpoint.load.only=[{counters[0]}] with checkpoint.load.from would count the other run's steps and "
                "samples as this run's; take over weights, or use checkpoint.resume=<path> to continue that run."
            )
        if self.overlapped_staging and self.mode in (SaveMode.sync, SaveMode.none):
            raise ConfigError(
                "checkpoint.overlapped_staging=true needs checkpoint=async or checkpoint=async_process; "
                "a synchronous save writes from the live state and stages nothing."
            )
        if self.mode is SaveMode.async_process and self.path is not None and self.path.startswith("memory:"):
            raise ConfigError(
                f"checkpoint=async_process cannot write to checkpoint.path={self.path}: the writing process has a "
                "memory of its own. Use checkpoint=async, or a path on storage."
            )

    @property
    def selection(self) -> LoadSelection:
        """``load`` as a record."""
        names = {key: tuple(self.load.get(key) or ()) for key in _LOAD_KEYS if key != "from"}
        source = self.load.get("from")
        return LoadSelection(**names, source=None if source is None else str(source))

    @property
    def resume_step(self) -> int | None:
        """The step asked for, when ``resume`` is a step."""
        return int(self.resume) if re.fullmatch(r"\d+", str(self.resume)) else None


def is_remote(path: str) -> bool:
    """Whether ``path`` is a URL rather than a local path (``file://`` counts as local)."""
    return re.match(r"[a-z][a-z0-9+.-]*(::|://)", path) is not None and not path.startswith("file://")
