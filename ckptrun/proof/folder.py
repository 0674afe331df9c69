"""The folder of a proof: it must be one of a proof or empty, and is cleared when the proof is done anew. Torch-free."""

import json
import shutil
from pathlib import Path

from ckptrun.errors import ConfigError
from ckptrun.evidence.run_folder import CONFIG, ENVIRONMENT, EVENTS, LEDGER, PROOF_LOCK, PROOF_MARK, RUN_LOCK, VERDICT
from ckptrun.files import write_json
from ckptrun.proof.places import clear_checkpoints

__all__ = ["check_folder", "claim_folder"]

_LOCKS = (RUN_LOCK, PROOF_LOCK)
# What a proof leaves, and may remove when it is done anew; anything else is somebody else's.
_OWN = (
    "checkpoints",
    CONFIG,
    ENVIRONMENT,
    EVENTS,
    "faults",
    "files",
    LEDGER,
    "logs",
    "proof",
    "tensorboard",
    VERDICT,
    PROOF_MARK,
)


def check_folder(folder: Path) -> None:
    """Look whether a proof may have the run folder; nothing is touched.

    Raises:
        ConfigError: It is a file, or holds something that no proof has left.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.dir={folder} is no folder. Choose another one.")
    strangers = [path.name for path in folder.iterdir() if path.name not in _LOCKS] if folder.is_dir() else []
    if strangers and not (folder / PROOF_MARK).is_file():
        raise ConfigError(
            f"run.dir={folder} holds {sorted(strangers)[0]!r} and was not made by a proof, which begins with an empty "
            "folder. Give the proof a folder of its own: run.dir=..., or, without that, run.name=..."
        )


def claim_folder(folder: Path, checkpoints: str | None) -> dict[str, int]:
    """Make the run folder, checked, one of a proof, empty. One that an earlier proof has left is cleared.

    Args:
        folder: The run folder.
        checkpoints: ``checkpoint.path``, where there is one.

    Returns:
        What the earlier one found legs to share: path -> when it had last been changed (see ``outside_files``).

    Raises:
        ConfigError: ``checkpoint.path`` holds something that no proof has left.
    """
    root = checkpoints or str(folder / "checkpoints")
    mark = folder / PROOF_MARK
    is_ours = mark.is_file()
    known: dict[str, int] = json.loads(mark.read_text()).get("outside", {}) if is_ours else {}
    if checkpoints is not None:
        clear_checkpoints(root, is_ours=is_ours and json.loads(mark.read_text()).get("checkpoints") == root)
    for name in _OWN:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(mark, {"checkpoints": root, "outside": known})
    return known
