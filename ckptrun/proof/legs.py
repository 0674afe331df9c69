"""The runs that a proof is made of: the config of each, and how it is started. Torch-free until ranks start."""

import copy
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptrun.config.checkpoint import SaveMode
from ckptrun.config.proof import ReloadCheck
from ckptrun.config.run import RunConfig
from ckptrun.errors import ConfigError
from ckptrun.files import EVENTS, write_json
from ckptrun.launch.local import Outcome, start_ranks
from ckptrun.launch.own_ranks import own_ranks
from ckptrun.proof.places import clear_checkpoints, clear_place, place_beside
from ckptrun.run.leg import Leg
from ckptrun.run.preflight import preflight

__all__ = ["Legs", "TimedOutcome", "check_folder", "claim_folder"]

_MARK = "proof.json"
_LOCKS = ("run.lock", "proof.lock")
# What a proof leaves, and may remove when it is done anew; anything else is somebody else's.
_OWN = (
    "checkpoints",
    "config.yaml",
    "environment.json",
    EVENTS,
    "faults",
    "files",
    "ledger",
    "logs",
    "proof",
    "tensorboard",
    "verdict.json",
    _MARK,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOutcome:
    """How a set of ranks ended, and how long that took."""

    outcome: Outcome
    seconds: float


class Legs:
    """Makes the configs of a proof's runs and starts their ranks.

    Args:
        config: Of the proof.
        command: The command line, for the record.
    """

    def __init__(self, config: RunConfig, *, command: Sequence[str]) -> None:
        self._config = config
        self._command = list(command)

    @property
    def run_dir(self) -> Path:
        """The folder of the proof, and of the run that is killed and resumed."""
        return self._config.run_dir

    def folder(self, name: str) -> Path:
        """The folder of another run of this proof."""
        return self.run_dir / "proof" / name

    def under_proof(self) -> RunConfig:
        """The run that is killed and resumed."""
        config = self._copy()
        if not _is_place(config):
            config.checkpoint.resume = "auto"
        return config

    def beside(self, name: str, *, saves: bool = True) -> RunConfig:
        """A run in a folder of its own: the same in all that is computed.

        Args:
            name: Of the folder.
            saves: Whether it saves at all.
        """
        config = self._copy()
        config.run.dir = str(self.folder(name))
        config.proof.reload = ReloadCheck.none
        if config.checkpoint.path is not None:
            config.checkpoint.path = place_beside(config.checkpoint.path, name)
        if not saves:
            config.checkpoint.mode = SaveMode.none
            config.checkpoint.overlapped_staging = False
        if not _is_place(config):
            config.checkpoint.resume = "none" if not saves else "auto"
        return config

    def start(self, config: RunConfig, leg: Leg) -> TimedOutcome:
        """Start the ranks of one leg and wait for their end. All but the run under proof begin in an empty place."""
        if config.run_dir != self.run_dir and config.checkpoint.mode is not SaveMode.none:
            clear_place(config.checkpoint_root)
        shutil.rmtree(config.run_dir / "trace", ignore_errors=True)
        began = time.monotonic()
        preflight(config, world_size=config.ranks)
        outcome = start_ranks(own_ranks(config, command=self._command, leg=leg))
        return TimedOutcome(outcome=outcome, seconds=time.monotonic() - began)

    def _copy(self) -> RunConfig:
        config = copy.deepcopy(self._config)
        config.proof.reference = None
        return config


def _is_place(config: RunConfig) -> bool:
    """Whether the run goes on from somebody else's checkpoint, which every leg then does."""
    return str(config.checkpoint.resume) not in ("auto", "none") and config.checkpoint.resume_step is None


def check_folder(config: RunConfig) -> None:
    """Look whether a proof may have the run folder; nothing is touched.

    Raises:
        ConfigError: It is a file, or holds something that no proof has left.
    """
    folder = config.run_dir
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"run.dir={folder} is no folder. Choose another one.")
    strangers = [path.name for path in folder.iterdir() if path.name not in _LOCKS] if folder.is_dir() else []
    if strangers and not (folder / _MARK).is_file():
        raise ConfigError(
            f"run.dir={folder} holds {sorted(strangers)[0]!r} and was not made by a proof, which begins with an empty "
            "folder. Give the proof a folder of its own: run.dir=..., or, without that, run.name=..."
        )


def claim_folder(config: RunConfig) -> dict[str, int]:
    """Make the run folder, checked, one of a proof, empty. One that an earlier proof has left is cleared.

    Returns:
        What the earlier one found legs to share: path -> when it had last been changed (see ``outside_files``).

    Raises:
        ConfigError: ``checkpoint.path`` holds something that no proof has left.
    """
    folder, root = config.run_dir, config.checkpoint_root
    mark = folder / _MARK
    is_ours = mark.is_file()
    known: dict[str, int] = json.loads(mark.read_text()).get("outside", {}) if is_ours else {}
    if config.checkpoint.path is not None:
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
