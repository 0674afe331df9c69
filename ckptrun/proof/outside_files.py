"""Finds files outside of the run folder that legs of a proof have in common. Starts nothing; torch-free.

Which leg ran when is written down here, what each rank opened by :mod:`ckptrun.run.watch.file_watch`. What was found
stays in ``proof.json``: the same proof made once more finds the files there already, written by none of its legs, and
would otherwise come to another verdict.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import assert_never

from ckptrun.checks.outside import Access, Crossing, Window, check_outside, find_crossings, is_matched
from ckptrun.config.checkpoint import is_remote
from ckptrun.config.run import RunConfig
from ckptrun.evidence.run_folder import FILES, PROOF
from ckptrun.evidence.verdict import Check
from ckptrun.files import append_line, read_lines
from ckptrun.proof.folder import keep_known
from ckptrun.rank_names import start_of
from ckptrun.run.watch.file_watch import FileWatch, How

__all__ = ["OutsideFiles", "default_shared"]

_LEGS = "proof/legs.jsonl"
# Folders of what is compiled or downloaded under a name that its content decides: (variable, default).
_CACHES = (
    ("PYTHONPYCACHEPREFIX", None),
    ("TORCHINDUCTOR_CACHE_DIR", None),
    ("TRITON_CACHE_DIR", "~/.triton"),
    ("TORCH_HOME", "~/.cache/torch"),
    ("TORCH_EXTENSIONS_DIR", "~/.cache/torch_extensions"),
    ("CUDA_CACHE_PATH", "~/.nv"),
    ("NUMBA_CACHE_DIR", None),
    ("HF_HUB_CACHE", "~/.cache/huggingface/hub"),
    ("MPLCONFIGDIR", "~/.cache/matplotlib"),
)
_COMPILED = ("*/__pycache__/*", "*.pyc", "*.nbi", "*.nbc")


def default_shared() -> list[str]:
    """What legs may share without being told: bytecode, and caches of compilers and downloads."""
    folders = [os.environ.get(name) or default for name, default in _CACHES]
    inductor = str(Path(tempfile.gettempdir(), "torchinductor_*"))
    return [*_COMPILED, inductor, *filter(None, folders)]


class OutsideFiles:
    """The files of one proof.

    Args:
        config: Of the proof; its folder has been claimed.
        known: What the proof that was here before has found to be shared: path -> time of its last change.
    """

    def __init__(self, config: RunConfig, *, known: Mapping[str, int]) -> None:
        self._config = config
        self._known = known
        self._since = min([time.time_ns(), *known.values()])
        self._folders: dict[str, Path] = {}
        root = config.checkpoint_root
        places = [str(config.run_dir), *([] if is_remote(root) else [root.removeprefix("file://")])]
        full = [os.path.abspath(place) for place in places]  # noqa: PTH100  # symlinks as they are, and below as not
        self._own = tuple(dict.fromkeys([*full, *map(os.path.realpath, full)]))
        self._allowed = list(_expanded([*default_shared(), *config.proof.private]))
        self._shared = list(_expanded(config.proof.shared))

    def begin(self, leg: str, start: int, run_dir: Path) -> FileWatch:
        """A start of ``leg`` begins, in ``run_dir``; return what its ranks shall note."""
        append_line(self._legs, {"leg": leg, "start": start, "began": time.time_ns()})
        self._folders[leg] = run_dir / FILES
        return FileWatch(log=self._folders[leg], since=self._since, own=self._own)

    @property
    def _legs(self) -> Path:
        self._config.run_dir.joinpath(PROOF).mkdir(parents=True, exist_ok=True)
        return self._config.run_dir / _LEGS

    def check(self) -> tuple[Check, list[str]]:
        """Return the check of all legs so far, and what it leaves out: sentences."""
        windows = [Window(**line) for line in read_lines(self._legs)]
        accesses, errors, unseen = self._accesses()
        accesses = [access for access in accesses if not is_matched(access.path, self._allowed)]
        crossings = find_crossings(accesses, windows, known=self._known, is_there=os.path.lexists)
        excused = [crossing for crossing in crossings if is_matched(crossing.path, self._shared)]
        counted = [crossing for crossing in crossings if crossing not in excused]
        self._remember(crossings)
        not_covered = [f"files that legs shared (proof.shared): {_named(excused)}"] if excused else []
        not_covered += [f"files that ranks opened could not all be noted: {errors[0]}"] if errors else []
        if unseen:
            not_covered.append(f"files and memory that {', '.join(unseen)} opened past Python: legs may share them")
        return check_outside(counted, accesses=len({access.path for access in accesses})), not_covered

    def _accesses(self) -> tuple[list[Access], list[str], list[str]]:
        """What was noted; what went wrong in that; what opens files that cannot be noted."""
        found, errors, unseen = [], [], set()
        for leg, folder in self._folders.items():
            for file in sorted(folder.glob("*.jsonl")):
                for line in read_lines(file):
                    match how := How(line["how"]):
                        case How.error:
                            errors.append(f"{leg}: {line['path']}")
                        case How.unseen:
                            unseen.add(line["path"])
                        case How.read | How.append | How.fresh | How.missed | How.removed | How.listed:
                            found.append(Access(leg=leg, start=start_of(file.name), **line))
                        case _:
                            assert_never(how)
        return found, errors, sorted(unseen)

    def _remember(self, crossings: Sequence[Crossing]) -> None:
        known = {crossing.path: crossing.changed for crossing in crossings if crossing.changed is not None}
        keep_known(self._config.run_dir, known)


def _named(crossings: Sequence[Crossing]) -> str:
    more = f" and {len(crossings) - 1} more" if len(crossings) > 1 else ""
    return f"{crossings[0]}{more}"


def _expanded(patterns: Sequence[str]) -> Iterator[str]:
    """Patterns as full paths, also through symbolic links; those that begin with ``*`` as they are."""
    for pattern in patterns:
        if pattern.startswith("*"):
            yield pattern
            continue
        full = os.path.abspath(os.path.expanduser(pattern))  # noqa: PTH100, PTH111  # a pattern is no path
        yield full
        # What is not there is not resolved: a pattern's last parts stay as they are.
        yield os.path.realpath(full)
