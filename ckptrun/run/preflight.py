"""What can be found wrong before any rank starts: folders, storage, and the checkpoint that would be resumed."""

from pathlib import Path

from ckptrun.config.checkpoint import SaveMode, is_remote
from ckptrun.config.data import TextConfig
from ckptrun.config.data_files import data_files
from ckptrun.config.run import RunConfig
from ckptrun.engine.manifest import read_manifest
from ckptrun.errors import ConfigError, ManifestError
from ckptrun.evidence.run_folder import CHECKPOINTS, CONFIG, EVENTS, LEDGER, PROOF_LOCK, PROOF_MARK, RUN_LOCK
from ckptrun.run.conditions import check_identity
from ckptrun.run.which_checkpoint import checkpoint_in, folders_to_resume, none_is_whole

__all__ = ["check_folder", "make_folder", "preflight"]

# Every start writes one of these first, be it in a proof: by them its folder is known.
_MARKS_OF_RUN = frozenset({EVENTS, RUN_LOCK, PROOF_MARK, PROOF_LOCK})
_MARKS_OF_PROOF = frozenset({PROOF_MARK})
# What may lie in a folder before: brought from elsewhere, to go on from; or left by a proof that got no further.
_BEFORE_A_RUN = frozenset({CHECKPOINTS, LEDGER})
_BEFORE_A_PROOF = frozenset({RUN_LOCK, PROOF_LOCK})
# Made and removed to see whether a folder can be written to. A kill in between leaves it, so it is nobody's.
_PROBE = ".writable"


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
    strangers = [name for name in names if name not in before and name != _PROBE]
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


def make_folder(key: str, config: RunConfig) -> None:
    """Make the folder that ``key`` names, ``run.dir`` or ``checkpoint.path``.

    Raises:
        ConfigError: It cannot be made, or not be written to.
    """
    folder = _folder(key, config)
    probe = folder / _PROBE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"{key}={folder} cannot be written: {error.strerror}. Choose another folder.") from error


def _folder(key: str, config: RunConfig) -> Path:
    return config.run_dir if key == "run.dir" else Path(config.checkpoint_root.removeprefix("file://"))


def _check_can_be_made(key: str, config: RunConfig) -> None:
    folder = _folder(key, config)
    above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not above.is_dir():
        raise ConfigError(f"{key}={folder} cannot be made: {above} is no folder. Choose another folder.")


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
