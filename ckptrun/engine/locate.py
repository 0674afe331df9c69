"""Which backend a path or URL is on: a local file system, S3, or anything else that fsspec opens."""

import os
import re
from pathlib import Path
from typing import Any

from ckptrun.engine.backends.interface import Backend, Location, Url
from ckptrun.engine.backends.local import LocalBackend
from ckptrun.engine.layout import parse_save_file
from ckptrun.errors import ConfigError

__all__ = ["locate", "place_of"]

_URL = re.compile(r"[a-z][a-z0-9+.-]*(::|://)")


def locate(url: Url) -> Location:
    """Return where ``url`` points. Local paths are made absolute now: the working folder may change before a save."""
    if isinstance(url, Location):
        return url
    text = os.fspath(url)
    if text.startswith("file://"):
        text = text.removeprefix("file://")
    elif _URL.match(text):
        return _locate_remote(text)
    return Location(LocalBackend(), str(Path(text).absolute()))


def place_of(url: Url) -> Location:
    """Return where ``url``, which a user has typed, points.

    Raises:
        ConfigError: It is a URL that nothing here can open.
    """
    try:
        return locate(url)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{url} cannot be opened: {error}.") from error


def _locate_remote(url: str) -> Location:
    # Imported here: most runs write to local paths, and a launcher wants to start fast.
    from fsspec.core import url_to_fs

    file_system, path = url_to_fs(url)
    return Location(_remote_backend(file_system), path)


def _remote_backend(file_system: Any) -> Backend:
    if any(kind.__module__.partition(".")[0] == "s3fs" for kind in type(file_system).__mro__):
        # Imported here, because other stores do without S3's libraries.
        from ckptrun.engine.backends.s3 import S3Backend

        return S3Backend(file_system, save_of=parse_save_file)
    from ckptrun.engine.backends.fsspec import FsspecBackend

    return FsspecBackend(file_system)
