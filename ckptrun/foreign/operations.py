"""The first operation of a step that two runs did differently. Torch-free."""

from collections.abc import Sequence
from dataclasses import dataclass

from ckptrun.foreign.records import Heard, Operation

__all__ = ["OperationDifference", "first_operation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationDifference:
    """Where they part."""

    rank: int
    number: int
    """Among the operations of the step, counted from 1."""
    expected: Operation | None
    """None: the run that nothing happened to does no more."""
    got: Operation | None

    def __str__(self) -> str:
        if self.expected is None or self.got is None or self.expected.name != self.got.name:
            names = [_named(one) for one in (self.expected, self.got)]
            return f"operation {self.number} of the step is {names[1]} instead of {names[0]} (rank {self.rank})"
        if self.expected.given != self.got.given:
            how = "is given other tensors or numbers, which no operation before it made"
        else:
            how = "makes something else of the same"
        return f"operation {self.number} of the step, {_named(self.got)}, {how} (rank {self.rank})"


def _named(operation: Operation | None) -> str:
    if operation is None:
        return "nothing"
    return f"{operation.name} at {operation.where}" if operation.where else operation.name


def _from_the_end(
    mine: Sequence[Operation], other: Sequence[Operation]
) -> tuple[Sequence[Operation], Sequence[Operation]]:
    """Both without what the longer one has before the first operation of the shorter one."""
    count = min(len(mine), len(other))
    ends = mine[len(mine) - count :], other[len(other) - count :]
    is_same = all(one.name == two.name for one, two in zip(*ends, strict=True))
    return ends if is_same and count else (mine, other)


def first_operation(expected: Heard, got: Heard) -> OperationDifference | None:
    """Return the first operation that differs on any rank, the earliest of all; None: none, or they were not watched.

    What counts is what it makes: what it fills may have held anything before. Steps are compared from their ends, where
    both do the same there: a start that begins may call modules before its first step, as it makes them.

    Args:
        expected: A run that nothing happened to, with a step watched.
        got: Another, with the same step watched.
    """
    found = []
    theirs = {rank.rank: rank.operations for rank in expected.ranks}
    for rank in got.ranks:
        mine, other = _from_the_end(rank.operations, theirs.get(rank.rank, []))
        if not mine or not other:
            continue
        for index in range(max(len(mine), len(other))):
            one = other[index] if index < len(other) else None
            two = mine[index] if index < len(mine) else None
            if one is None or two is None or (one.name, one.made) != (two.name, two.made):
                found.append(OperationDifference(rank=rank.rank, number=index + 1, expected=one, got=two))
                break
    return min(found, key=lambda one: (one.number, one.rank), default=None)
