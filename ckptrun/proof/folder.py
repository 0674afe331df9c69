"""The folder of a proof: cleared when the proof is done anew, all but what it has learned of its files. Torch-free."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from ckptrun import __version__
from ckptrun.evidence.run_folder import (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    EVENTS,
    FAULTS,
    FILES,
    LEDGER,
    LOGS,
    MARKDOWN,
    PROOF,
    PROOF_MARK,
    REPORT,
    TENSORBOARD,
    VERDICT,
)
from ckptrun.files import write_json
from ckptrun.proof.places import clear_checkpoints

__all__ = ["claim_folder", "keep_known"]

_KNOWN = "outside"
# What a proof leaves, and may remove when it is done anew; anything else is somebody else's.
_OWN = (
    CHECKPOINTS,
    CONFIG,
    ENVIRONMENT,
    EVENTS,
    FAULTS,
    FILES,
    LEDGER,
    LOGS,
    MARKDOWN,
    PROOF,
    TENSORBOARD,
    VERDICT,
    PROOF_MARK,
    REPORT,
)


def claim_folder(folder: Path, checkpoints: str | None, command: Sequence[str] = ()) -> dict[str, int]:
    """Make the run folder, checked, one of a proof, empty. One that an earlier proof has left is cleared.

    Args:
        folder: The run folder.
        checkpoints: ``checkpoint.path``, where there is one.
        command: The command line, for the report.

    Returns:
        What the earlier one found legs to share: path -> when it had last been changed (see ``outside_files``).

    Raises:
        ConfigError: ``checkpoint.path`` holds something that no proof has left.
    """
    root = checkpoints or str(folder / CHECKPOINTS)
    mark = folder / PROOF_MARK
    is_ours = mark.is_file()
    known: dict[str, int] = json.loads(mark.read_text()).get(_KNOWN, {}) if is_ours else {}
    if checkpoints is not None:
        clear_checkpoints(root, is_ours=is_ours and json.loads(mark.read_text()).get("checkpoints") == root)
    for name in _OWN:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(mark, {"ckptrun": __version__, "command": list(command), "checkpoints": root, _KNOWN: known})
    return known


def keep_known(folder: Path, known: Mapping[str, int]) -> None:
    """Write down what legs were found to share, for the same proof done anew: path -> its last change."""
    mark = folder / PROOF_MARK
    write_json(mark, {**json.loads(mark.read_text()), _KNOWN: known})
