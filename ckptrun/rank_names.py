"""What belongs to one rank bears its name, ``rank_00003``: files, and leaves that no other rank has. Torch-free.

Nobody else spells the name or takes it apart.
"""

import re
from collections.abc import Iterable

__all__ = [
    "RANK_NAME",
    "fault_file_name",
    "leading_rank",
    "parse_fault_file",
    "rank_in",
    "rank_name",
    "rank_of",
    "start_of",
]

RANK_NAME = r"rank_[0-9]{5,}"
"""What :func:`rank_name` returns, as a regular expression."""

_LEADING = re.compile(r"rank_([0-9]{5,})")
_ELEMENT = re.compile(r"(?:\w+_)?rank_([0-9]{5})")
_OF_START = re.compile(r"start_([0-9]{5,})\.rank_[0-9]{5,}")
_FAULT_FILE = re.compile(r"(?P<index>[0-9]{5})\.rank_(?P<rank>[0-9]{5})\.json")


def rank_name(rank: int, *, start: int | None = None) -> str:
    """Return the name of ``rank``; with ``start``, of the rank in that start of a run."""
    name = f"rank_{rank:05d}"
    return name if start is None else f"start_{start:05d}.{name}"


def start_of(file_name: str) -> int:
    """Return the start in the name of a file that belongs to one rank in one start, see :func:`rank_name`."""
    match = _OF_START.match(file_name)
    if match is None:
        raise ValueError(f"{file_name} names no start of a run.")
    return int(match[1])


def leading_rank(name: str) -> int | None:
    """Return the rank whose name a file's name begins with; None where it begins with none."""
    match = _LEADING.match(name)
    return None if match is None else int(match[1])


def rank_in(element: str | int) -> int | None:
    """Return the rank that an element of a leaf's path names: it is ``rank_00003``, or ends in ``_rank_00003``."""
    match = _ELEMENT.fullmatch(str(element))
    return None if match is None else int(match[1])


def rank_of(path: Iterable[str | int]) -> int | None:
    """Return the rank that the leaf with this path belongs to; None where it is no rank's own."""
    return next((rank for rank in map(rank_in, path) if rank is not None), None)


def fault_file_name(index: int, rank: int) -> str:
    """Return the name of the file that says of a planned fault that it has struck ``rank``."""
    return f"{index:05d}.{rank_name(rank)}.json"


def parse_fault_file(name: str) -> tuple[int, int] | None:
    """Undo :func:`fault_file_name`: the fault's index and the rank; None where ``name`` is none."""
    match = _FAULT_FILE.fullmatch(name)
    return None if match is None else (int(match["index"]), int(match["rank"]))
