"""The name of every file and folder of a checkpoint, and how names are read back. Nobody else spells them.

::

    step_00000020/                          a checkpoint, once it holds a manifest
        manifest.json
        rank_00000.safetensors              what rank 0 wrote
        rank_00000-00001.safetensors        part 1 of it: a second chunk of a leaf that is in part 0 already
        rank_00000.<save id>.safetensors    the same where storage cannot rename a folder
    step_00000020.tmp-<save id>/            a save in flight, or cut off before its commit
    step_00000020.tmp-<save id>.lock        there as long as the process that leads the save lives and is not done
    step_00000020/<save id>.lock            the same where storage cannot rename a folder
    step_00000020.old-<save id>/            what an overwrite replaces, for the moment of the swap
    step_00000020.gone-<save id>/           on its way out: no checkpoint any more, not yet deleted

Names are parsed with ``fullmatch``; what does not match is not ours. Must not know what is in the files, nor touch
storage.
"""

import os
import re
import uuid
from dataclasses import dataclass
from enum import StrEnum

from ckptrun.rank_names import RANK_NAME, rank_name

__all__ = [
    "MANIFEST",
    "Leftover",
    "LeftoverKind",
    "is_save_id",
    "is_shard_file_name",
    "leftover_name",
    "lock_name",
    "new_save_id",
    "parse_leftover",
    "parse_save_file",
    "parse_step",
    "shard_file_name",
    "step_folder",
    "step_name",
]

MANIFEST = "manifest.json"

_STEP = re.compile(r"step_([0-9]{8,})")
_SAVE_ID = re.compile(r"[0-9a-f]{32}")
_SHARD_FILE = re.compile(RANK_NAME + r"(-[0-9]{5,})?(\.[0-9a-f]{32})?\.safetensors")
_LEFTOVER = re.compile(r"(?P<name>.+)\.(?P<kind>tmp|old|gone)-(?P<save_id>[0-9a-f]{32})(?P<lock>\.lock)?")
_SAVE_FILE = re.compile(rf"({RANK_NAME}(-[0-9]{{5,}})?\.)?(?P<save_id>[0-9a-f]{{32}})\.(safetensors|lock)")


class LeftoverKind(StrEnum):
    """What a folder beside a checkpoint is."""

    tmp = "tmp"
    """A save before its commit."""
    old = "old"
    """A committed checkpoint that an overwrite has moved away and not yet deleted."""
    gone = "gone"
    """A checkpoint that was removed and not yet deleted."""
    lock = "lock"
    """The lock file of a save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """The name of a folder or file that says it is not a checkpoint, taken apart."""

    name: str
    """The checkpoint folder that it belongs to."""
    kind: LeftoverKind
    save_id: str


def step_name(step: int) -> str:
    """Return the folder name of the checkpoint of ``step``."""
    return f"step_{step:08d}"


def step_folder(root: str | os.PathLike[str], step: int) -> str:
    """Return the path or URL of the checkpoint of ``step`` under ``root``."""
    base = os.fspath(root)
    return base + step_name(step) if base.endswith(("/", "://")) else f"{base}/{step_name(step)}"


def parse_step(name: str) -> int | None:
    """Return the step that a folder name stands for; None when it is not the name of a checkpoint."""
    match = _STEP.fullmatch(name)
    if match is None or step_name(int(match[1])) != name:
        return None
    return int(match[1])


def new_save_id() -> str:
    """Return an id that no other save has."""
    return uuid.uuid4().hex


def is_save_id(text: str) -> bool:
    """Whether ``text`` can be a save id."""
    return _SAVE_ID.fullmatch(text) is not None


def shard_file_name(rank: int, *, part: int = 0, save_id: str | None = None) -> str:
    """Return the name of a shard file; ``save_id`` is given where files land in the final folder before the commit."""
    suffix = f"-{part:05d}" if part else ""
    infix = f".{save_id}" if save_id is not None else ""
    return f"{rank_name(rank)}{suffix}{infix}.safetensors"


def is_shard_file_name(name: str) -> bool:
    """Whether ``name`` can be a shard file of this format; such a name cannot point outside its folder."""
    return _SHARD_FILE.fullmatch(name) is not None


def leftover_name(name: str, kind: LeftoverKind, save_id: str) -> str:
    """Return the name of a folder beside the checkpoint folder ``name``."""
    return f"{name}.{kind}-{save_id}"


def lock_name(name: str, save_id: str, *, in_folder: bool) -> str:
    """Return the name of a save's lock file: beside the checkpoint folder ``name``, or inside it."""
    return f"{save_id}.lock" if in_folder else f"{leftover_name(name, LeftoverKind.tmp, save_id)}.lock"


def parse_leftover(name: str) -> Leftover | None:
    """Take a name beside checkpoints apart; None when it is nothing that a save leaves behind."""
    match = _LEFTOVER.fullmatch(name)
    if match is None:
        return None
    kind = LeftoverKind.lock if match["lock"] else LeftoverKind(match["kind"])
    return Leftover(name=match["name"], kind=kind, save_id=match["save_id"])


def parse_save_file(name: str) -> str | None:
    """Return the save id in the name of a file that lies in a checkpoint folder; None when there is none."""
    match = _SAVE_FILE.fullmatch(name)
    return None if match is None else match["save_id"]
