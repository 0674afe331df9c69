"""What can be found wrong before any rank starts: folders, storage, and the checkpoint that would be resumed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ckptrun.config.checkpoint import SaveMode, is_remote
from ckptrun.config.data import TextConfig
from ckptrun.config.data_files import data_files
from ckptrun.config.run import RunConfig, to_plain
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import step_folder
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import read_manifest
from ckptrun.errors import (
    CheckpointDamagedError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    ManifestError,
)
from ckptrun.evidence.run_folder import CONFIG, EVENTS, LEDGER, PROOF_LOCK, PROOF_MARK, RUN_LOCK

__all__ = [
    "abandoned_steps",
    "changed_keys",
    "check_folder",
    "checkpoint_in",
    "checkpoint_of",
    "deciding_keys",
    "folders_to_resume",
    "make_folder",
    "none_is_whole",
    "preflight",
]

# Their state would be loaded into something else: refused. Everything else that changed is only reported.
_IDENTITY = ("model", "optimizer")
# Every start writes one of these first, be it in a proof: by them its folder is known.
_MARKS_OF_RUN = frozenset({EVENTS, RUN_LOCK, PROOF_MARK, PROOF_LOCK})
_MARKS_OF_PROOF = frozenset({PROOF_MARK})
# What may lie in a folder before: brought from elsewhere, to go on from; or left by a proof that got no further.
_BEFORE_A_RUN = frozenset({"checkpoints", LEDGER})
_BEFORE_A_PROOF = frozenset({RUN_LOCK, PROOF_LOCK})
_OPERATION = ("run", "launch", "proof", "fault", "checkpoint", "device")


def preflight(config: RunConfig, *, world_size: int) -> None:
    """Make the folders of the run and look at what is in them.

    Called in the launching process, or on rank 0 under an outside launcher.

    Raises:
        ConfigError: A folder cannot be used, a checkpoint to resume does not exist or belongs to another model, there
            are no files to train on. Nothing was made then.
    """
    if config.checkpoint.path is not None and config.checkpoint.path.startswith("memory:") and world_size > 1:
        raise ConfigError(
            f"checkpoint.path={config.checkpoint.path} is the memory of one process, but there are {world_size} ranks. "
            "Use parallelism=none, or a path on storage that all ranks see."
        )
    if isinstance(config.data, TextConfig):
        data_files(config.data.files)
    _check_reference(config)
    keys = ["run.dir"]
    if config.checkpoint.mode is not SaveMode.none and not is_remote(config.checkpoint_root):
        keys.append("checkpoint.path")
    for key in keys:
        _check_can_be_made(key, config)
    _check_resume(config)
    for key in keys:
        make_folder(key, config)


def check_folder(folder: Path, *, in_proof: bool) -> None:
    """Refuse to put a run, or a proof, into a folder with somebody else's files; nothing is touched.

    A run would replace some of them, a proof would remove some.

    Raises:
        ConfigError: It is a file, or holds what no run, or no proof, has left; names it.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.dir={folder} is no folder. Choose another one.")
    if in_proof:
        what, marks, before, would = "proof", _MARKS_OF_PROOF, _BEFORE_A_PROOF, "begins with an empty folder"
    else:
        what, marks, before, would = "run", _MARKS_OF_RUN, _BEFORE_A_RUN, "would put its own files there"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    strangers = [name for name in names if name not in before]
    if strangers and marks.isdisjoint(names):
        raise ConfigError(
            f"run.dir={folder} holds {strangers[0]!r} and was not made by a {what}, which {would}. Give the {what} a "
            "folder of its own: run.dir=..., or, without that, run.name=..."
        )


def _check_resume(config: RunConfig) -> None:
    """Look at what would be loaded; nothing is made for a start that cannot be."""
    folders = folders_to_resume(config)
    for folder in folders:
        try:
            manifest = read_manifest(folder)
        except ManifestError as error:
            if folder == folders[-1]:
                raise none_is_whole(config, {folder: str(error)}) from error
            continue
        check_identity(config, manifest.run, folder)
        break
    if not folders and config.checkpoint.selection.source is not None:
        checkpoint_in(config.checkpoint.selection.source, key="checkpoint.load.from")


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


def make_folder(key: str, config: RunConfig) -> None:
    """Make the folder that ``key`` names, ``run.dir`` or ``checkpoint.path``.

    Raises:
        ConfigError: It cannot be made, or not be written to.
    """
    folder = _folder(key, config)
    probe = folder / f".writable-{config.run.name and hash(config.run.name) & 0xFFFF:x}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"{key}={folder} cannot be written: {error.strerror}. Choose another folder.") from error


def _folder(key: str, config: RunConfig) -> Path:
    return config.run_dir if key == "run.dir" else Path(config.checkpoint_root.removeprefix("file://"))


def _check_can_be_made(key: str, config: RunConfig) -> None:
    folder = _folder(key, config)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ConfigError(f"{key}={folder} cannot be made: {above} is no folder. Choose another folder.")


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
    for root in (place, f"{place.rstrip('/')}/checkpoints"):
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
    return step_folder(config["checkpoint"]["path"] or run_dir / "checkpoints", step)


def _check_reference(config: RunConfig) -> None:
    if config.proof.reference is None:
        return
    reference = Path(config.proof.reference).expanduser().resolve()
    for needed in (reference / CONFIG, reference / LEDGER):
        if not needed.exists():
            raise ConfigError(
                f"proof.reference={config.proof.reference} is no run to compare with: {needed} does not exist. Name "
                "the folder of a run of the same config, such as outputs/<experiment>/<run>."
            )
    if reference == config.run_dir:
        raise ConfigError(f"proof.reference={config.proof.reference} is this run's own folder, and proves nothing.")


def _own_step(config: RunConfig, folder: str) -> int | None:
    """The step of ``folder``, if it is one of this run's own checkpoints."""
    steps = list_committed(config.checkpoint_root)
    same = [step for step in steps if locate(step_folder(config.checkpoint_root, step)) == locate(folder)]
    return same[0] if same else None


def abandoned_steps(config: RunConfig) -> list[int]:
    """Committed steps that this start, which goes back, was allowed to remove."""
    resume = str(config.checkpoint.resume)
    if resume == "auto" or not config.checkpoint.overwrite:
        return []
    kept: int | None = config.checkpoint.resume_step
    if kept is None and resume != "none":
        kept = _own_step(config, checkpoint_in(resume, key="checkpoint.resume"))
    return [step for step in list_committed(config.checkpoint_root) if step > (-1 if kept is None else kept)]


def _check_overwrite(config: RunConfig, steps: list[int], *, kept: int) -> None:
    later = [step for step in steps if step > kept]
    if later and not config.checkpoint.overwrite:
        raise CheckpointExistsError(
            f"checkpoint.resume={config.checkpoint.resume} would train again what {config.checkpoint_root} holds "
            f"(committed steps: {', '.join(map(str, later))}). Allow their removal with checkpoint.overwrite=true, or "
            "give the new run a name of its own: run.name=...",
            folder=config.checkpoint_root,
        )


def check_identity(config: RunConfig, saved_run: Mapping[str, Any], folder: str) -> None:
    """Refuse a checkpoint of another model or optimizer.

    Raises:
        ConfigError: names the keys that differ, and both values.
    """
    selection = config.checkpoint.selection
    changed = [
        (key, before, now)
        for key, before, now in changed_keys(config, saved_run)
        if key.split(".")[0] in _IDENTITY and selection.takes(key.split(".")[0])
    ]
    if changed:
        # "choice" is how the config is recorded; it is typed as model=gpt.
        named = [(key.removesuffix(".choice"), before, now) for key, before, now in changed]
        listed = "; ".join(f"{key} was {before!r}, now {now!r}" for key, before, now in named)
        group = changed[0][0].split(".")[0]
        takes_weights = (
            ""
            if any(key == "model" for key, _, _ in named)
            else (f" Or take over the weights only with run.name=... checkpoint.load.from={folder}.")
        )
        raise ConfigError(
            f"{folder} is a checkpoint of another {group}: {listed}. Go back to those values, or start a run of its "
            f"own with run.name=... .{takes_weights}"
        )


def changed_keys(config: RunConfig, saved_run: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Keys that decide what is computed and differ from the run that saved: (key, then, now)."""
    before, now = saved_run.get("config"), to_plain(config)
    if not isinstance(before, Mapping):
        return []
    flat_before, flat_now = deciding_keys(before), deciding_keys(now)
    return [
        (key, flat_before.get(key), flat_now.get(key))
        for key in sorted(flat_before.keys() | flat_now.keys())
        if flat_before.get(key) != flat_now.get(key)
    ]


def deciding_keys(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of a config that decide what is computed, full name -> value; ``plain`` is what ``to_plain`` gives."""
    return {key: value for key, value in _flat(plain).items() if key.split(".")[0] not in _OPERATION}


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            found.update(_flat(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
