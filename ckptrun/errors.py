"""Every error that ckptrun raises on purpose.

The tree::

    CkptrunError
    |- ConfigError                 (ValueError)         a key or the command line is wrong; exit code 2
    |- CheckpointError             (RuntimeError)       something about one checkpoint
    |  |- CheckpointNotFoundError  (FileNotFoundError)  no committed checkpoint where one was asked for
    |  |- CheckpointExistsError    (FileExistsError)    a committed checkpoint would be overwritten
    |  |- SaveRefusedError                              what a save was about to commit is not what was live
    |  |- CheckpointDamagedError                        what lies on storage is not what was written
    |  |  |- ManifestError                              manifest.json cannot be trusted
    |  |  |- ShardFileError                             a shard file cannot be trusted
    |  |  `- ForeignFileError                           a file of another format cannot be trusted
    |  |- UnsupportedLeafError     (TypeError)          a leaf that cannot be stored without pickle
    |  `- StateMismatchError                            checkpoint and live state name different leaves
    |- RankFailedError             (RuntimeError)       a rank of this run ended before its work was done
    `- InternalError               (RuntimeError)       a bug in ckptrun

The form of a message: what failed, the values (expected and got), where (path, step, rank), the way out.
"""

from collections.abc import Sequence

__all__ = [
    "CheckpointDamagedError",
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "CkptrunError",
    "ConfigError",
    "ForeignFileError",
    "InternalError",
    "ManifestError",
    "RankFailedError",
    "SaveRefusedError",
    "ShardFileError",
    "StateMismatchError",
    "UnsupportedLeafError",
]


class CkptrunError(Exception):
    """The root: ``except CkptrunError`` catches everything that ckptrun raises on purpose."""


class ConfigError(CkptrunError, ValueError):
    """A key, a value or the command line is wrong. The message names the key as the user types it."""


class CheckpointError(CkptrunError, RuntimeError):
    """Something about one checkpoint; ``folder`` says which one."""

    def __init__(self, message: str, *, folder: str | None = None) -> None:
        super().__init__(message)
        self.folder = folder


class CheckpointNotFoundError(CheckpointError, FileNotFoundError):
    """No committed checkpoint where one was asked for."""


class CheckpointExistsError(CheckpointError, FileExistsError):
    """A committed checkpoint stands where a new one should go, and overwriting was not asked for."""


class SaveRefusedError(CheckpointError):
    """What a save was about to commit is not what was live when it was requested. Nothing of it is committed.

    ``leaves`` holds the names of the leaves that show it, and ``check`` that of the check of a proof that has found it
    thereby. (For the default see StateMismatchError.)
    """

    check = "saved_equals_live"

    def __init__(self, message: str, *, leaves: Sequence[str] = (), folder: str | None = None) -> None:
        super().__init__(message, folder=folder)
        self.leaves = tuple(leaves)


class CheckpointDamagedError(CheckpointError):
    """What lies on storage is not what was written."""


class ManifestError(CheckpointDamagedError):
    """``manifest.json`` is missing a field, is of another format version, or cannot be parsed."""


class ShardFileError(CheckpointDamagedError):
    """A shard file is missing, cut, or holds other bytes than the manifest says.

    ``leaf`` is the full name of a leaf that cannot be read, where one was asked for.
    """

    def __init__(self, message: str, *, leaf: str | None = None, folder: str | None = None) -> None:
        super().__init__(message, folder=folder)
        self.leaf = leaf


class ForeignFileError(CheckpointDamagedError):
    """A file of another format (DCP, ``torch.save``, safetensors) is damaged, or asks for code to be run."""


class UnsupportedLeafError(CheckpointError, TypeError):
    """A leaf that is neither a tensor nor a plain value; it could only be stored with pickle."""


class StateMismatchError(CheckpointError):
    """Checkpoint and live state do not name the same leaves with the same dtypes and shapes.

    ``leaves`` holds the full names of all leaves concerned. (It has a default because errors travel between ranks by
    pickle, which calls the class with the message alone and restores the rest from ``__dict__``.)
    """

    def __init__(self, message: str, *, leaves: Sequence[str] = (), folder: str | None = None) -> None:
        super().__init__(message, folder=folder)
        self.leaves = tuple(leaves)


class RankFailedError(CkptrunError, RuntimeError):
    """A rank ended before its work was done; the message names the rank and what it reported."""


class InternalError(CkptrunError, RuntimeError):
    """A bug in ckptrun itself; please report it with the message."""
