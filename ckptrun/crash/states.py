"""The states of the job's folder that a kill or a power cut within a save can leave. Torch-free.

====================  ==================================================================================================
killed                after each call, as processes did them; then all of them are gone at once
torn                  within a write, at each border of a block: there the kernel ends it when the process is killed
one rank killed       each rank after each of its calls, while the others go on until they meet it in a collective
power cut             after each call that names, removes or syncs something, and at the end: what was not synced yet is
                      lost as a whole; or of one file its bytes are lost, cut in half or zeros; or of all files; or one
                      name is not there, is still there, or is still the old one
====================  ==================================================================================================

What was there before the save is taken to be on the disk. States that are equal are one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ckptrun.crash.files import Change, Files, Tree, Unreplayable, tree_with
from ckptrun.crash.operations import Deed, Operation

__all__ = ["CrashState", "Ending", "How", "crash_states"]

_NAMING = (Deed.rename, Deed.remove, Deed.link, Deed.symlink, Deed.sync, Deed.sync_all)


class How(StrEnum):
    """What ended the job."""

    killed = "killed"
    torn = "torn"
    one_rank = "one rank killed"
    power_cut = "power cut"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What can have left a state."""

    how: How
    by: Operation | None
    """The last call, or the one that was cut; None: none of the save was done yet."""
    text: str
    """For people, behind what it is."""

    def __str__(self) -> str:
        return f"{self.how}{':' if self.how is How.power_cut else ''} {self.text}"


@dataclass(slots=True)
class CrashState:
    """What lies in the folder, and what can have left it."""

    tree: Tree
    endings: list[Ending] = field(default_factory=list)


def crash_states(
    before: Files, operations: Sequence[Operation], *, block_bytes: int, with_power_cuts: bool
) -> list[CrashState]:
    """Build them; equal ones once, in the order in which they came to be found.

    Args:
        before: The folder when the save begins; it is not changed.
        operations: What the save does, in the order in which it was done.
        block_bytes: Writes are cut at each multiple of it.
        with_power_cuts: Also those that a power cut leaves.
    """
    found: dict[str, CrashState] = {}
    kinds = [_killed(before.copy(), operations, block_bytes), _one_rank_killed(before, operations)]
    kinds += [_power_cuts(before, operations)] if with_power_cuts else []
    for kind in kinds:
        for tree, ending in kind:
            found.setdefault(tree.key, CrashState(tree)).endings.append(ending)
    return list(found.values())


_Found = Iterator[tuple[Tree, Ending]]


def _killed(files: Files, operations: Sequence[Operation], block_bytes: int) -> _Found:
    yield files.tree(), Ending(how=How.killed, by=None, text="before the save")
    for operation in operations:
        if operation.deed is Deed.write and not operation.is_elsewhere:
            yield from _torn(files, operation, block_bytes)
        if files.apply(operation) and not operation.is_elsewhere:
            yield files.tree(), Ending(how=How.killed, by=operation, text=f"after {operation}")


def _torn(files: Files, operation: Operation, block_bytes: int) -> _Found:
    content = files.content_of(operation.path)
    begin = operation.offset if operation.offset is not None else content.size if content is not None else 0
    first = (begin // block_bytes + 1) * block_bytes
    for border in range(first, begin + len(operation.data), block_bytes):
        torn = files.copy()
        torn.apply(_cut(operation, border - begin))
        text = f"within {operation}, after {border - begin} bytes"
        yield torn.tree(), Ending(how=How.torn, by=operation, text=text)


def _cut(operation: Operation, size: int) -> Operation:
    return replace(operation, data=operation.data[:size])


def _one_rank_killed(before: Files, operations: Sequence[Operation]) -> _Found:
    """Of the others, what needs no word of the rank that is gone."""
    ranks = sorted({operation.rank for operation in operations})
    for rank in ranks if len(ranks) > 1 else []:
        own = [index for index, operation in enumerate(operations) if operation.rank == rank]
        for count, stopped in enumerate(own):
            came_to = operations[stopped]
            last = operations[own[count - 1]] if count else None
            files = before.copy()
            for index, operation in enumerate(operations):
                is_done = index < stopped if operation.rank == rank else _needs_nobody(operation, came_to)
                if is_done:
                    try:
                        files.apply(operation)
                    except Unreplayable:
                        # It went by what the rank that is gone would have done.
                        break
            text = f"rank {rank} before {came_to}; the other ranks went on to where they wait for it"
            yield files.tree(), Ending(how=How.one_rank, by=last, text=text)


def _needs_nobody(operation: Operation, stopped: Operation) -> bool:
    return (operation.step, operation.meetings) <= (stopped.step, stopped.meetings)


def _power_cuts(before: Files, operations: Sequence[Operation]) -> _Found:
    files = before.copy()
    changes: list[Change] = []
    pending: list[int] = []
    for number, operation in enumerate(operations):
        made = files.apply(operation)
        pending += range(len(changes), len(changes) + len(made))
        changes += made
        if operation.deed is Deed.sync_all:
            pending = []
        elif operation.deed is Deed.sync:
            node = files.node_of(operation.path)
            pending = [index for index in pending if changes[index].node != node]
        if operation.deed in _NAMING or number == len(operations) - 1:
            yield from _cut_at(before, files, changes, pending, operation)


def _cut_at(before: Files, files: Files, changes: Sequence[Change], pending: Sequence[int], last: Operation) -> _Found:
    """What can be on the disk when the power is cut right after ``last``."""
    when = f"after {last}"

    def state(lost: Sequence[int], by: Operation, text: str) -> tuple[Tree, Ending]:
        tree = tree_with(before, changes, files, lost=set(lost))
        return tree, Ending(how=How.power_cut, by=by, text=f"{text}; {when}")

    if not pending:
        return
    yield state(pending, last, "nothing that was not synced is there")
    data = [index for index in pending if changes[index].data is not None or changes[index].size is not None]
    names = [index for index in pending if changes[index].names and not changes[index].by.is_elsewhere]
    if data:
        yield state(data, changes[data[-1]].by, "names are there, bytes that were not synced are not")
    by_node: dict[int, list[int]] = {}
    for index in data:
        by_node.setdefault(changes[index].node, []).append(index)
    for own in by_node.values():
        by = changes[own[-1]].by
        path = by.path
        yield state(own, by, f"the bytes of {path} are not there")
        for text, instead in (("cut in half", _halved), ("zeros", _zeroed)):
            written = instead([changes[index] for index in own])
            if written:
                others = [change for index, change in enumerate(changes) if index not in own]
                tree = tree_with(before, [*others, *written], files, lost=())
                yield tree, Ending(how=How.power_cut, by=by, text=f"the bytes of {path} are {text}; {when}")
    for index in names:
        yield state([index], changes[index].by, f"{changes[index].by} is not on the disk")


def _halved(own: Sequence[Change]) -> list[Change]:
    """The first half of what was written to a file."""
    end = max((change.offset + len(change.data) for change in own if change.data is not None), default=0)
    return [*own, replace(own[-1], data=None, names=(), size=end // 2)] if end > 1 else []


def _zeroed(own: Sequence[Change]) -> list[Change]:
    """As much, and all of it zeros."""
    return [replace(change, data=bytes(len(change.data))) if change.data is not None else change for change in own]
