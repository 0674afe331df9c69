"""The files that ``data.files`` names: looked for before any rank is started, and again by each rank. Torch-free."""

import glob
from collections.abc import Sequence
from pathlib import Path

from ckptrun.errors import ConfigError

__all__ = ["data_files"]


def data_files(patterns: Sequence[str]) -> list[Path]:
    """Return the files in the order of the patterns and, within one, of the paths; each file once.

    Args:
        patterns: Paths or globs; ``~`` and ``**`` are understood, relative ones start in the working folder.

    Raises:
        ConfigError: A pattern matches no file; names it.
    """
    if not patterns:
        raise ConfigError("data.files must name files to train on, e.g. 'data.files=[~/books/**/*.txt]'.")
    return list(dict.fromkeys(file for pattern in patterns for file in _matches(pattern)))


def _matches(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    # Path.glob takes no absolute patterns, and its ** leaves files out.
    found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207
    files = [path for path in found if not path.is_dir()]
    if files:
        return files
    hint = f" It is a folder: write '{pattern.rstrip('/')}/**' for all files in it." if found else ""
    raise ConfigError(f"data.files: no file matches {pattern!r} (looked from {Path.cwd()}).{hint}")
