"""One run of a command with its system calls written down, and the save in it that is judged. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from ckptrun.crash.files import Files, Tree, Unreplayable
from ckptrun.crash.operations import Deed, Operation, Reading, names_from_elsewhere, read_operations
from ckptrun.crash.trace import read_calls
from ckptrun.errors import ConfigError
from ckptrun.foreign.checkpoints import SavedStep
from ckptrun.foreign.records import Heard
from ckptrun.text import counted

__all__ = ["Recording", "Window", "choose_window", "read_recording"]

_NAMED = 3
_NEVER = 1 << 62


@dataclass(slots=True, kw_only=True)
class Recording:
    """What a run did, and to which files."""

    heard: Heard
    saved: Sequence[SavedStep]
    """Complete ones, by step."""
    operations: Sequence[Operation]
    unknown: Sequence[str]
    """Why the record does not tell all; empty: it does."""
    seconds: float = 0.0
    """How long it took."""
    notes: list[str]
    """What was not seen, and changes nothing of the rest."""

    def steps_after(self, step: int) -> int:
        """How many steps the job takes after a save."""
        return max(0, self.heard.steps - step)


@dataclass(slots=True, kw_only=True)
class Window:
    """One save, with all that was done to files until the next one began."""

    step: int
    before: Files
    operations: Sequence[Operation]
    whole: Mapping[int, Tree]
    """Step of a save -> what lay there when it was over; of this one and of those before it."""

    @property
    def replaces(self) -> bool:
        """Whether it removes or replaces something that was there before."""
        there = self.before.tree().entries
        return any(
            (operation.deed is Deed.remove and operation.path in there)
            or (operation.deed is Deed.rename and operation.other in there)
            for operation in self.operations
        )


def read_recording(
    trace: Path, *, heard: Heard, saved: Sequence[SavedStep], output: Path, records: Path, cwd: Path
) -> Recording:
    """Read a record, do what it says to a model of the files, and hold that against what lies there.

    Args:
        trace: What strace has written.
        heard: What the ranks did.
        saved: What they saved.
        output: The folder of the job, as it has left it.
        records: Where the probe wrote to.
        cwd: Where the command was started.
    """
    reading = Reading()
    operations: list[Operation] = []
    unknown: list[str] = []
    mapped: list[tuple[Operation, int | None]] = []
    files = Files()
    found = read_operations(
        read_calls(trace), root=output, records=records, cwd=cwd, reading=reading,
        from_elsewhere=names_from_elsewhere(trace, output),
    )  # fmt: skip
    for operation in found:
        try:
            if operation.call == "mmap":
                mapped.append((operation, files.node_of(operation.path)))
            else:
                _fill(operation, files, output)
                files.apply(operation)
        except Unreplayable as error:
            if operation.is_elsewhere:
                continue
            unknown.append(f"{error}: the record has nothing of what it needs")
            continue
        operations.append(operation)
    unknown += sorted(reading.unknown)
    for operation, node in mapped:
        path = None if node is None else files.path_of(node)
        if path is None and node is None and operation.is_elsewhere:
            continue
        if path is None:
            unknown.append(f"{operation.path} was written through memory, and is there no more")
        else:
            operation.data = (output / path).read_bytes()
    if mapped and not unknown:
        files = Files()
        for operation in operations:
            files.apply(operation)
    names = sorted({operation.path for operation, _ in mapped})
    return Recording(
        heard=heard,
        saved=[one for one in saved if one.is_complete],
        operations=operations,
        unknown=[*unknown, *_differences(files.tree(), output)],
        notes=[f"the order in which bytes came to {_some(names)}, written through memory"] if names else [],
    )


def _fill(operation: Operation, files: Files, output: Path) -> None:
    """Find the bytes that were copied within the kernel."""
    if operation.deed is not Deed.write or not operation.other:
        return
    origin = Path(operation.other)
    begin = operation.offset or 0
    is_inside = output in origin.parents
    content = files.content_of(str(origin.relative_to(output) if is_inside else origin))
    if content is not None:
        operation.data = content.part(begin, begin + operation.size)
        return
    if is_inside:
        raise Unreplayable(str(operation))
    try:
        with origin.open("rb") as file:
            file.seek(begin)
            operation.data = file.read(operation.size)
    except OSError:
        raise Unreplayable(str(operation)) from None


def _differences(tree: Tree, output: Path) -> list[str]:
    """Where the model of the files is not what lies there."""
    wrong = []
    found = {str(path.relative_to(output)): path for path in output.rglob("*")}
    for path in sorted(found.keys() | tree.entries.keys()):
        entry, place = tree.entries.get(path), found.get(path)
        if entry is None or place is None:
            wrong.append(path)
        elif entry.content is not None:
            with place.open("rb") as file:
                if entry.content.size != place.stat().st_size or not entry.content.equals(file):
                    wrong.append(path)
    return [f"the record does not lead to what lies in {_some(wrong)}"] if wrong else []


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMED} more" if len(paths) > _NAMED else ""
    return ", ".join(paths[:_NAMED]) + more


def choose_window(recording: Recording, step: int | None, *, resume_steps: int) -> Window:
    """Find the save that is judged.

    Args:
        recording: Of the run.
        step: Whose save it is; None: see ``crash.step``.
        resume_steps: How many steps a resume is to take after it.

    Raises:
        ConfigError: There is no such save.
    """
    steps = sorted({one.step for one in recording.saved})
    if step is not None and step not in steps:
        raise ConfigError(
            f"crash.step={step}: nothing was saved after that step. Saved are the steps {', '.join(map(str, steps))}."
        )
    if step is not None:
        return _window(recording, steps, step)
    windows = [_window(recording, steps, one) for one in steps[1:] or steps]
    # Of a save that the job ends with nothing is seen of what a resume from it would compute.
    most = max(min(recording.steps_after(window.step), resume_steps) for window in windows)
    judged = [window for window in windows if recording.steps_after(window.step) >= most]
    window = next((window for window in judged if window.replaces), judged[0])
    late = next((other for other in windows if other.replaces), None)
    if late is not None and not window.replaces:
        left = counted(recording.steps_after(late.step), "step")
        recording.notes.append(
            f"the removal of older checkpoints: the first save with it is that of step {late.step}, after which the "
            f"job takes {left} (crash.step={late.step}, or let it go on for longer)"
        )
    return window


def _window(recording: Recording, steps: Sequence[int], step: int) -> Window:
    """Everything from a step that is saved to before the next one that is."""
    files, whole = Files(), {}
    # What was done before the first save is of none.
    borders = [0, *(one for one in steps if one <= step), next((one for one in steps if one > step), _NEVER)]
    before, own = files, list[Operation]()
    for begin, end in pairwise(borders):
        before = files.copy()
        own = [operation for operation in recording.operations if begin <= operation.step < end]
        for operation in own:
            files.apply(operation)
        whole[begin] = files.tree()
    return Window(step=step, before=before, operations=own, whole=whole)
