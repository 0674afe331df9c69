"""Which checkpoint a start goes on from, and what it may remove for that. Looks, and loads nothing. Torch-free."""

from collections.abc import Mapping
from pathlib import Path

import yaml

from ckptrun.config.checkpoint import SaveMode
from ckptrun.config.run import RunConfig
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import step_folder
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import read_manifest
from ckptrun.errors import CheckpointDamagedError, CheckpointExistsError, CheckpointNotFoundError, ConfigError
from ckptrun.evidence.run_folder import CHECKPOINTS, CONFIG

__all__ = ["abandoned_steps", "checkpoint_in", "checkpoint_of", "folders_to_resume", "none_is_whole"]


def folders_to_resume(config: RunConfig) -> list[str]:
    """The checkpoints that a start of ``config`` may resume from, the first that is whole; none: it starts at step 0.

    Rank 0's view decides; call it there only.

    Raises:
        ConfigError: The checkpoint asked for does not exist, or going back was not allowed to remove later ones.
    """
    if config.checkpoint.mode is SaveMode.none and config.checkpoint.resume == "auto":
        return []
    root, resume = config.checkpoint_root, str(config.checkpoint.resume)
    try:
        steps = list_committed(root)
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(f"checkpoint.path={root} cannot be read: {error}.") from error
    newest_first = [step_folder(root, step) for step in reversed(steps)]
    match resume:
        case "none":
            _check_overwrite(config, steps, kept=-1)
            return []
        case "auto":
            return newest_first
        case _ if config.checkpoint.resume_step is not None:
            step = config.checkpoint.resume_step
            if step not in steps:
                shown = ", ".join(map(str, steps)) or "none"
                raise CheckpointNotFoundError(
                    f"checkpoint.resume={step}: there is no checkpoint of step {step} in {root} (committed steps: "
                    f"{shown}). "
                    "Use one of them, or checkpoint.resume=auto for the newest.",
                    folder=root,
                )
            _check_overwrite(config, steps, kept=step)
            return [step_folder(root, step)]
        case _:
            folder = checkpoint_in(resume, key="checkpoint.resume")
            own = _own_step(config, folder)
            if own is not None:
                _check_overwrite(config, steps, kept=own)
                return [folder]
            # The same command again goes on with what the run has saved since.
            return newest_first if steps and not config.checkpoint.overwrite else [folder]


def checkpoint_in(place: str, *, key: str) -> str:
    """The checkpoint that ``place`` names: the folder itself, or the newest of a run or of a folder of checkpoints.

    Raises:
        CheckpointNotFoundError: There is none.
    """
    for root in (place, f"{place.rstrip('/')}/{CHECKPOINTS}"):
        steps = list_committed(root)
        if steps:
            return step_folder(root, steps[-1])
    try:
        read_manifest(place)
    except CheckpointNotFoundError as error:
        raise CheckpointNotFoundError(
            f"{key}={place} is no checkpoint, no run, and no folder of checkpoints. "
            "Give a folder such as outputs/<experiment>/<run>/checkpoints/step_00000020.",
            folder=place,
        ) from error
    return place


def checkpoint_of(run_dir: Path, step: int) -> str:
    """The checkpoint of ``step`` of another run, which may have put its checkpoints anywhere; it need not exist."""
    config = yaml.safe_load((run_dir / CONFIG).read_text())
    return step_folder(config["checkpoint"]["path"] or run_dir / CHECKPOINTS, step)


def none_is_whole(config: RunConfig, damaged: Mapping[str, str]) -> CheckpointDamagedError:
    """Return the error for a start that finds only ``damaged`` checkpoints: folder -> what is wrong."""
    folder, reason = next(iter(damaged.items()))
    steps = [
        step
        for step in list_committed(config.checkpoint_root)
        if step_folder(config.checkpoint_root, step) not in damaged
    ]
    if steps:
        way_out = (
            f"Other committed steps: {', '.join(map(str, steps))}. Go back to the newest of them with "
            f"checkpoint.resume={steps[-1]} checkpoint.overwrite=true; nothing is removed unless it loads."
        )
    else:
        way_out = (
            f"No checkpoint in {config.checkpoint_root} is whole, and a run that has some does not start from step 0 "
            "by itself: checkpoint.resume=none checkpoint.overwrite=true makes it."
        )
    return CheckpointDamagedError(f"{reason} {way_out}", folder=folder)


def abandoned_steps(config: RunConfig) -> list[int]:
    """Committed steps that this start, which goes back, was allowed to remove."""
    resume = str(config.checkpoint.resume)
    if resume == "auto" or not config.checkpoint.overwrite:
        return []
    kept: int | None = config.checkpoint.resume_step
    if kept is None and resume != "none":
        kept = _own_step(config, checkpoint_in(resume, key="checkpoint.resume"))
    return [step for step in list_committed(config.checkpoint_root) if step > (-1 if kept is None else kept)]


def _own_step(config: RunConfig, folder: str) -> int | None:
    """The step of ``folder``, if it is one of this run's own checkpoints."""
    steps = list_committed(config.checkpoint_root)
    same = [step for step in steps if locate(step_folder(config.checkpoint_root, step)) == locate(folder)]
    return same[0] if same else None


def _check_overwrite(config: RunConfig, steps: list[int], *, kept: int) -> None:
    later = [step for step in steps if step > kept]
    if later and not config.checkpoint.overwrite:
        raise CheckpointExistsError(
            f"checkpoint.resume={config.checkpoint.resume} would train again what {config.checkpoint_root} holds "
            f"(committed steps: {', '.join(map(str, later))}). Allow their removal with checkpoint.overwrite=true, or "
            "give the new run a name of its own: run.name=...",
            folder=config.checkpoint_root,
        )
