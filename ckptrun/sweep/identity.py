"""What decides what comes out of a cell, in one word, so that a sweep can tell what has changed. Torch-free."""

import hashlib
import json
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ckptrun.config.run import RunConfig, to_plain

__all__ = ["identity_of"]

_SAYS_NOTHING = ("run", "sweep")
_OF_LAUNCH = ("nproc",)
_PACKAGES = ("ckptrun", "torch")
_LARGEST_FILE = 2**24


def identity_of(config: RunConfig) -> str:
    """The same for two cells of which the same is to be expected.

    It depends on the config, but for its place and for how long ranks may take; on the versions of Python, ckptrun and
    torch; and on the content of files up to 16 MiB that the config names (``file.py:name``, parts of a command). What
    those import is not looked at.
    """
    plain = {key: value for key, value in to_plain(config).items() if key not in _SAYS_NOTHING}
    plain["launch"] = {key: value for key, value in plain["launch"].items() if key in _OF_LAUNCH}
    files = {str(path): _digest(path) for path in sorted(set(_files(plain)))}
    facts = {"config": plain, "files": files, "versions": _versions()}
    return hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = ""
    return found


def _files(value: Any) -> Iterator[Path]:
    """Files that a config names anywhere."""
    if isinstance(value, dict):
        for part in value.values():
            yield from _files(part)
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _files(part)
    elif isinstance(value, str) and value and len(value) < 1024 and "\0" not in value:
        for text in (value, value.rpartition(":")[0]):
            path = Path(text).expanduser()
            if text and path.is_file():
                yield path.resolve()


def _digest(path: Path) -> str:
    status = path.stat()
    if status.st_size > _LARGEST_FILE:
        return f"{status.st_size} bytes"
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
