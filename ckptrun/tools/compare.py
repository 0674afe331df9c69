"""Compares two checkpoints leaf by leaf, bit by bit, slab by slab. Must not print.

::

    A  [read rows] --> slabs ahead --+
                                     +--> [compare]
    B  [read rows] --> slabs ahead --+

Each checkpoint is read by a thread of its own. Memory is a few slabs of 8 MiB, however large the checkpoints are; two
rows (along dim 0) of each where a row is longer than that.
"""

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from ckptrun.errors import StateMismatchError, UnsupportedLeafError
from ckptrun.formats.open_source import Source, SourceLeaf
from ckptrun.tools.leaf_difference import LeafDifference, Tally, tensors_alike, values_alike

__all__ = ["Comparison", "Side", "compare"]

# Formats that have leaves only, and so no dict without any.
_WITHOUT_EMPTY = ("torch", "safetensors", "dcp")
_SLAB_BYTES = 8 * 2**20
_AHEAD_BYTES = 3 * _SLAB_BYTES


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two checkpoints."""

    source: Source
    names: Mapping[str, str]
    """Name to compare under -> name in the checkpoint, of the leaves that take part."""

    def leaf(self, name: str) -> SourceLeaf:
        """Return the leaf that is compared under ``name``."""
        return self.source.leaves[self.names[name]]


@dataclass(slots=True, kw_only=True)
class Comparison:
    """What came out, in the order of A."""

    equal: list[str] = field(default_factory=list)
    differing: list[LeafDifference] = field(default_factory=list)
    only_in_a: list[str] = field(default_factory=list)
    only_in_b: list[str] = field(default_factory=list)
    not_compared: dict[str, str] = field(default_factory=dict)
    """Leaf -> why it cannot be compared."""
    empty: list[str] = field(default_factory=list)
    """Empty dicts and lists that only one has, and that the other's format cannot hold: no difference."""
    names: tuple[str, ...] = ()
    """All that take part, in the order of A."""
    bytes: int = 0
    """Of the tensors of A that were compared."""

    @property
    def is_different(self) -> bool:
        """Whether a difference was found."""
        return bool(self.differing or self.only_in_a or self.only_in_b)


def compare(
    a: Side, b: Side, *, started: Callable[[int], Callable[[int], None]] = lambda _: lambda _: None
) -> Comparison:
    """Compare all leaves that take part.

    Args:
        a: One checkpoint.
        b: The other.
        started: Called with the bytes of A that will be compared; what it returns is told how many more are.

    Raises:
        CheckpointDamagedError: One of the checkpoints cannot be trusted.
    """
    found = Comparison(
        only_in_a=[name for name in a.names if name not in b.names],
        only_in_b=[name for name in b.names if name not in a.names],
        names=tuple(dict.fromkeys([*a.names, *b.names])),
    )
    found.only_in_a = _without_empty(found, found.only_in_a, a, b)
    found.only_in_b = _without_empty(found, found.only_in_b, b, a)
    verdicts: dict[str, LeafDifference | None] = {}
    tensors: list[str] = []
    for name in a.names:
        if name not in b.names:
            continue
        one, other = a.leaf(name), b.leaf(name)
        try:
            difference = tensors_alike(name, one, other)
            if difference is None and not one.is_tensor:
                difference = values_alike(name, one, other)
            verdicts[name] = difference
        except UnsupportedLeafError as error:
            found.not_compared[name] = str(error)
            continue
        if difference is None and one.is_tensor:
            tensors.append(name)
    _compare_tensors(a, b, tensors, verdicts, found, started(sum(a.leaf(name).bytes for name in tensors)))
    found.equal = [name for name, verdict in verdicts.items() if verdict is None and name not in found.not_compared]
    found.differing = [verdict for name, verdict in verdicts.items() if verdict is not None]
    return found


def _without_empty(found: Comparison, names: Sequence[str], one: Side, other: Side) -> list[str]:
    """Leave out what holds nothing, where the format of the other could not say so."""
    if other.source.format not in _WITHOUT_EMPTY:
        return list(names)
    empty = [name for name in names if _is_empty(one.leaf(name))]
    found.empty.extend(empty)
    return [name for name in names if name not in empty]


def _is_empty(leaf: SourceLeaf) -> bool:
    with contextlib.suppress(UnsupportedLeafError):
        return not leaf.is_tensor and isinstance(leaf.value, dict | list) and not leaf.value
    return False


def _compare_tensors(
    a: Side,
    b: Side,
    names: Iterable[str],
    verdicts: dict[str, LeafDifference | None],
    found: Comparison,
    advance: Callable[[int], None],
) -> None:
    with _Reader(a) as one, _Reader(b) as other:
        slabs = ((name, *rows) for name in names for rows in _slabs_of(a.leaf(name)))
        for name, group in itertools.groupby(_read_ahead(slabs, one, other), key=lambda read: read[0]):
            tally = Tally(a.leaf(name))
            for _, first, of_a, of_b in group:
                try:
                    slab = of_a.result()
                    tally.add(first, slab, of_b.result())
                except StateMismatchError as error:
                    found.not_compared[name] = str(error)
                    continue
                found.bytes += slab.nbytes
                advance(slab.nbytes)
            if name not in found.not_compared:
                verdicts[name] = tally.difference(name)


def _slabs_of(leaf: SourceLeaf) -> Iterator[tuple[int, int, int]]:
    """Yield first row, number of rows and bytes of each slab."""
    rows = leaf.rows
    if not leaf.bytes:
        return
    row_bytes = leaf.bytes // rows
    step = max(1, _SLAB_BYTES // row_bytes)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        yield first, count, count * row_bytes


class _Reader:
    """A thread that reads one checkpoint."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"diff {side.source.format}")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(wait=True, cancel_futures=True)

    def read(self, name: str, first: int, count: int) -> "Future[Tensor]":
        """Start to read a slab."""
        return self._executor.submit(self._side.source.read_rows, self._side.names[name], first, count)


def _read_ahead(
    slabs: Iterable[tuple[str, int, int, int]], one: _Reader, other: _Reader
) -> Iterator[tuple[str, int, "Future[Tensor]", "Future[Tensor]"]]:
    """Yield each slab with what reads it from both, the next ones being read already."""
    waiting: deque[tuple[int, tuple[str, int, Future[Tensor], Future[Tensor]]]] = deque()
    ahead = 0
    for name, first, count, size in slabs:
        while waiting and ahead + size > _AHEAD_BYTES:
            done, read = waiting.popleft()
            ahead -= done
            yield read
        waiting.append((size, (name, first, one.read(name, first, count), other.read(name, first, count))))
        ahead += size
    for _, read in waiting:
        yield read
