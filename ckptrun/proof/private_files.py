"""Gives each leg of a proof its own copy of files outside of the run folder (``proof.private``).

A leg begins with what was there before the proof, and a resumed start with what the starts before it have left, as it
would without a proof; what is begun from a checkpoint of the run begins with what the run found there. In the end
everything is as it was before. Copies are made, nothing is moved: what lies there may be a mount.

While a proof runs, ``proof/private.json`` says that what lies there is not what was there before. Torch-free.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from ckptrun.config.checkpoint import is_remote
from ckptrun.config.run import RunConfig
from ckptrun.errors import ConfigError
from ckptrun.evidence.run_folder import PROOF
from ckptrun.files import write_json

__all__ = ["PrivateFiles", "check_private"]

_BEFORE = "before"
_RUN = "run"
_CONTENT = "content"


def check_private(config: RunConfig) -> None:
    """Check what ``proof.private`` names; nothing is touched.

    Raises:
        ConfigError: It holds what no leg may replace, or an earlier proof was killed before it had put it back.
    """
    root = config.checkpoint_root
    kept = [config.run_dir, Path.cwd(), Path.home(), *([] if is_remote(root) else [Path(root.removeprefix("file://"))])]
    for path in _paths(config):
        inside = next((place for place in kept if path == _full(place) or path in _full(place).parents), None)
        if inside is not None or _full(config.run_dir) in path.parents:
            raise ConfigError(
                f"proof.private={path}: each leg of the proof gets a copy of its own, and {inside or config.run_dir} "
                "cannot be replaced. Name the file or folder that the job itself writes."
            )
    mark = _mark(config)
    if mark.is_file():
        places = json.loads(mark.read_text())["paths"]
        kept_in = ", ".join(f"{place} (in {_copies(config) / str(i) / _BEFORE})" for i, place in enumerate(places))
        raise ConfigError(
            f"An earlier proof in {config.run_dir} was killed before it had put back what proof.private names: "
            f"{kept_in}. Copy back what you need, remove {mark}, and run the same command again."
        )


class PrivateFiles:
    """The copies of one proof.

    Args:
        config: Of the proof, checked.
    """

    def __init__(self, config: RunConfig) -> None:
        self._paths = _paths(config)
        self._mark = _mark(config)
        self._folder = _copies(config)
        self._current: str | None = None

    def keep(self) -> None:
        """Keep what is there before the proof."""
        if self._paths:
            self._save(_BEFORE)
            write_json(self._mark, {"paths": [str(path) for path in self._paths]})

    def begin(self, leg: str, start: int, *, begins_as: int | None) -> None:
        """A start of ``leg`` begins: put there what it shall find.

        Args:
            leg: Which one; its later starts find what the earlier ones have left.
            start: How often it had been started before.
            begins_as: The start of the run that ``leg`` is to be held against; None: it begins anew.
        """
        if not self._paths:
            return
        if self._current is not None:
            self._save(self._current)
        found = [leg, *([] if begins_as is None else [f"{_RUN}.{begins_as}", _RUN]), _BEFORE]
        self._put(next(name for name in found if self._place(0, name).is_dir()))
        if leg == _RUN and start:
            self._save(f"{_RUN}.{start}")
        self._current = leg

    def put_back(self) -> None:
        """Put back what was there before the proof, and remove the copies."""
        if self._mark.is_file():
            self._put(_BEFORE)
            self._mark.unlink()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _place(self, index: int, name: str) -> Path:
        return self._folder / str(index) / name

    def _save(self, name: str) -> None:
        for index, path in enumerate(self._paths):
            place = self._place(index, name)
            if place.is_dir():
                shutil.rmtree(place)
            place.mkdir(parents=True)
            _copy(path, place / _CONTENT)

    def _put(self, name: str) -> None:
        for index, path in enumerate(self._paths):
            _clear(path)
            _copy(self._place(index, name) / _CONTENT, path)


def _copy(source: Path, target: Path) -> None:
    """Copy a file or a folder; nothing where there is none."""
    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    elif source.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _clear(path: Path) -> None:
    """Remove a file, or a folder with all that it holds; a mount stays, empty."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    for inner in path.iterdir():
        if inner.is_dir() and not inner.is_symlink():
            shutil.rmtree(inner)
        else:
            inner.unlink()
    with contextlib.suppress(OSError):
        path.rmdir()


def _paths(config: RunConfig) -> Sequence[Path]:
    return [_full(Path(place)) for place in config.proof.private]


def _full(place: Path) -> Path:
    # Through symbolic links: the copy is of what they lead to, and they stay.
    return Path(os.path.realpath(place.expanduser()))


def _mark(config: RunConfig) -> Path:
    return config.run_dir / PROOF / "private.json"


def _copies(config: RunConfig) -> Path:
    return config.run_dir / PROOF / "private"
