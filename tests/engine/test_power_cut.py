"""The power is cut at every point of a save, and the disk shows what it likes of all that was not synced by then.

See ``tests.support.power_cut`` for what it may show. From each of these states a run starts again. What it must find is
told by the marks that the recorded process left: what had been requested, what had been reported as saved, and what was
on its way out when the power went.
"""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from ckptrun.engine.commit import list_leftovers, remove_checkpoint, remove_leftovers
from ckptrun.engine.layout import parse_step
from tests.support.faulty_calls import KillingCalls, Operation, RecordingCalls, record_in
from tests.support.forked import Forker
from tests.support.known_saves import MEDIUM, SMALL, place, save, versions_in
from tests.support.power_cut import Disk, State, states_of
from tests.support.run_ranks import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")

RUN = "runs/run"
EARLIER = (1, 2)
_SAVED_AGAIN = 40
"""After each so many states a new save is tried."""


def record_save(root: Path, calls: RecordingCalls, step: int, version: int, *, size: int = SMALL) -> None:
    """Save, with marks."""
    first = not dist.is_initialized() or dist.get_rank() == 0
    if first:
        calls.mark(json.dumps(["requested", step, version]))
    save(place(root, step, calls), version, size=size, overwrite=step in EARLIER)
    if first:
        calls.mark(json.dumps(["reported", step, version]))


def record_removal(root: Path, calls: RecordingCalls, step: int) -> None:
    calls.mark(json.dumps(["removing", step]))
    remove_checkpoint(place(root, step, calls).parent, step)


def first_save(root: Path, calls: RecordingCalls) -> None:
    record_save(root, calls, 1, 1)


def later_save(root: Path, calls: RecordingCalls) -> None:
    record_save(root, calls, 3, 3)


def save_of_several_blocks(root: Path, calls: RecordingCalls) -> None:
    record_save(root, calls, 3, 3, size=MEDIUM)


def save_of_two_ranks(root: Path, calls: RecordingCalls) -> None:
    run_ranks(record_save, 2, root, calls, 3, 3)


def overwrite(root: Path, calls: RecordingCalls) -> None:
    record_save(root, calls, 2, 9)


def overwrite_twice(root: Path, calls: RecordingCalls) -> None:
    record_save(root, calls, 2, 9)
    record_save(root, calls, 2, 10)


def retention(root: Path, calls: RecordingCalls) -> None:
    record_save(root, calls, 3, 3)
    for step in EARLIER:
        record_removal(root, calls, step)


def remove_and_save(root: Path, calls: RecordingCalls) -> None:
    """Over what a killed save has left, some time ago."""
    remove_leftovers(place(root, 1, calls).parent)
    record_save(root, calls, 3, 3)


@dataclass(frozen=True)
class Scenario:
    """What lies on the disk, and what is done to it while it is recorded."""

    act: Callable[[Path, RecordingCalls], None]
    earlier: tuple[int, ...] = EARLIER
    killed_at: int = 0
    """The call before which an earlier save of step 3 was killed."""


SCENARIOS = {
    "first save": Scenario(first_save, earlier=()),
    "later save": Scenario(later_save),
    "save of several blocks": Scenario(save_of_several_blocks),
    "overwrite": Scenario(overwrite),
    "overwrite twice": Scenario(overwrite_twice),
    "retention": Scenario(retention),
    "save after a killed one": Scenario(remove_and_save, killed_at=25),
    "save of two ranks": Scenario(save_of_two_ranks),
}
NARROW = ("later save", "save of several blocks", "overwrite", "overwrite twice", "save of two ranks")
"""What others hold, too, but for more bytes or ranks. Behind the marker that CI runs."""


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """In memory, where there is room: what is shown is made by hand, so no disk has a part in it."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or shutil.disk_usage(memory).free < 2**30:
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="ckptrun-power-cut-", dir=memory) as made:
        yield Path(made)


@dataclass
class Recorded:
    """A disk as it was, and what was done to it."""

    disk: Disk
    record: list[Operation]
    told: list[str] = field(default_factory=list)
    """Marks from before the record."""


def prepare(folder: Path, scenario: Scenario) -> Recorded:
    """Make the disk of a scenario, in ``folder``."""
    run = folder / "disk" / RUN
    run.parent.mkdir(parents=True)
    (folder / "pool").mkdir()
    for step in scenario.earlier:
        save(place(run, step), step, size=SMALL)
    if scenario.killed_at:
        with Forker() as forker:
            assert forker.run(save, place(run, 3, KillingCalls(scenario.killed_at)), 3).code == -9
    told = [json.dumps([word, step, step]) for step in scenario.earlier for word in ("requested", "reported")]
    return Recorded(Disk(folder / "disk", folder / "pool"), [], told)


def recorded(folder: Path, scenario: Scenario, *, never_synced: str = "") -> Recorded:
    """Make the disk of a scenario, and record it."""
    prepared = prepare(folder, scenario)
    calls = RecordingCalls(folder / "record", never_synced=never_synced)
    scenario.act(folder / "disk" / RUN, calls)
    prepared.record = record_in(folder / "record", folder / "disk")
    return prepared


@dataclass
class Expected:
    """What the world may rely on after what it was told."""

    allowed: dict[int, set[int]] = field(default_factory=dict)
    """Step -> versions that may be there."""
    required: set[int] = field(default_factory=set)

    def __init__(self, marks: Sequence[str]) -> None:
        self.allowed, self.required = {}, set()
        for mark in marks:
            word, step, *version = json.loads(mark)
            if word == "removing":
                self.required.discard(step)
            elif word == "requested":
                self.allowed.setdefault(step, set()).update(version)
            else:
                self.allowed[step] = set(version)
                self.required.add(step)

    def check(self, found: dict[int, int], required: set[int]) -> None:
        wrong = {step: version for step, version in found.items() if version not in self.allowed.get(step, set())}
        assert not wrong, f"found are {wrong} (step: version), allowed {self.allowed}"
        assert required <= found.keys(), f"lost are {required - found.keys()}, found {found}"


def check_state(root: Path, expected: Expected, *, saves_again: bool) -> None:
    """Start a run over what the power cut has left."""
    replaced = {step for step in expected.required if len(expected.allowed[step]) > 1}
    expected.check(versions_in(root, through_dcp=False), expected.required - replaced)
    remove_leftovers(root)
    found = versions_in(root, through_dcp=False)
    expected.check(found, expected.required)
    assert list_leftovers(root) == []
    assert all(parse_step(path.name) in found for path in (root.iterdir() if root.exists() else []))
    if saves_again:
        for step in (7, *found):
            save(place(root, step), 7, size=SMALL, overwrite=step in found)
        assert versions_in(root) == dict.fromkeys((7, *found), 7)


def violations(folder: Path, recorded: Recorded, *, first: int = 0, until: str | None = None) -> tuple[int, list[str]]:
    """How many states there are, and what is wrong with each that breaks a promise.

    Args:
        folder: Room to work in.
        recorded: What happened.
        first: Cuts before that many operations are not tried.
        until: No more are looked at once this has been found.
    """
    wrong: list[str] = []
    count = 0
    shown = folder / "shown"
    for done, marks, state in states_of(recorded.disk, recorded.record, first=first):
        if until is not None and any(until in message for message in wrong):
            break
        recorded.disk.show(state, shown)
        try:
            expected = Expected([*recorded.told, *marks])
            check_state(shown / RUN, expected, saves_again=count % _SAVED_AGAIN == 0)
        except Exception as error:
            last = recorded.record[done - 1]
            wrong.append(f"after {done} operations, {last.kind} {last.path}: {error}\n{_text(state)}")
        shutil.rmtree(shown)
        count += 1
    return count, wrong


def _text(state: State) -> str:
    files = (f"{path} {content[:8]}" for path, content in state.files)
    return "\n".join([*(f"{path}/" for path in state.folders), *files])


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in NARROW else []) for name in SCENARIOS]
)
def test_whatever_a_power_cut_leaves_holds_every_reported_checkpoint(name: str, folder: Path) -> None:
    count, wrong = violations(folder, recorded(folder, SCENARIOS[name]))
    assert not wrong, f"{len(wrong)} of {count} states: {wrong[0]}"
    assert count > 40


def restarts(folder: Path, scenario: Scenario, kinds: Collection[str]) -> Iterator[tuple[int, Recorded]]:
    """A save is killed after an operation; the next run begins, and saves; nothing but what they sync is synced.

    Yields:
        After how many operations the kill came, and the record of all.
    """
    prepared = prepare(folder, scenario)
    before = folder / "before"
    shutil.copytree(folder / "disk", before)
    calls = RecordingCalls(folder / "record")
    scenario.act(folder / "disk" / RUN, calls)
    whole = record_in(folder / "record", folder / "disk")
    for count, operation in enumerate(whole, start=1):
        if operation.kind not in kinds:
            continue
        disk = Disk(before, folder / "pool")
        for done in whole[:count]:
            disk.apply(done)
        again, log = folder / f"again_{count}", folder / f"record_{count}"
        disk.show(disk.now(), again)
        calls = RecordingCalls(log)
        remove_leftovers(place(again / RUN, 1, calls).parent)
        record_save(again / RUN, calls, 4, 4)
        record = [*whole[:count], *record_in(log, again)]
        yield count, Recorded(Disk(before, folder / "pool"), record, prepared.told)


def assert_restarts_lose_nothing(folder: Path, name: str, kinds: Collection[str]) -> None:
    tried = 0
    for killed_after, record in restarts(folder, SCENARIOS[name], kinds):
        count, wrong = violations(folder, record, first=killed_after + 1)
        assert not wrong, f"killed after {killed_after} operations: {len(wrong)} of {count} states: {wrong[0]}"
        tried += count
    assert tried > 40


@pytest.mark.parametrize(("name", "kinds"), [("first save", ["mkdir"]), ("overwrite", ["rename"])])
def test_a_power_cut_after_a_kill_and_a_restart(name: str, kinds: list[str], folder: Path) -> None:
    """What a killed process has renamed may be undone as long as nobody syncs it."""
    assert_restarts_lose_nothing(folder, name, kinds)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first save", "overwrite", "retention", "save after a killed one"])
def test_a_power_cut_after_a_kill_anywhere_and_a_restart(name: str, folder: Path) -> None:
    # A sync changes nothing that the next run could see, and the power is cut only after that has begun.
    kinds = ("open", "write", "allocate", "mkdir", "rename", "unlink", "rmdir")
    assert_restarts_lose_nothing(folder, name, kinds)


class FailingSync(RecordingCalls):
    """Recorded calls, of which one ``fsync`` fails."""

    def __init__(self, record: Path, number: int) -> None:
        super().__init__(record)
        self.left = number

    def around(self, name: str, real: Callable[..., Any], *arguments: Any) -> Any:
        self.left -= name == "fsync"
        if name == "fsync" and self.left == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().around(name, real, *arguments)


def overwrite_that_fails(folder: Path, number: int) -> Recorded:
    """The sync with this number fails, the save takes back what it did, and is made again. Calls where it fails."""
    failing = prepare(folder, Scenario(overwrite))
    root = folder / "disk" / RUN
    calls = FailingSync(folder / "record", number)
    with contextlib.suppress(CheckpointException):
        record_save(root, calls, 2, 9)
    assert calls.left <= 0
    record_save(root, calls, 2, 10)
    failing.record = record_in(folder / "record", folder / "disk")
    return failing


@pytest.mark.parametrize(
    "number", [pytest.param(number, marks=[] if number == 7 else pytest.mark.slow) for number in range(2, 9)]
)
def test_a_power_cut_after_an_overwrite_that_failed(number: int, folder: Path) -> None:
    failing = overwrite_that_fails(folder, number)
    marks = [json.loads(operation.path)[::2] for operation in failing.record if operation.kind == "mark"]
    assert marks == [["requested", 9], ["requested", 10], ["reported", 10]]
    count, wrong = violations(folder, failing)
    assert not wrong, f"{len(wrong)} of {count} states: {wrong[0]}"


# The model has teeth: it finds what is wrong with a save that does not sync, or not in time.


@pytest.mark.parametrize(
    ("name", "never_synced", "found"),
    [
        ("first save", "file", "manifest.json"),
        ("first save", "folder", "lost are {1}"),
        ("overwrite", "file", "manifest.json"),
        ("overwrite", "folder", "lost are {2}"),
        ("retention", "folder", "lost are {3}"),
    ],
)
def test_a_save_that_never_syncs_is_found_out(name: str, never_synced: str, found: str, folder: Path) -> None:
    _, wrong = violations(folder, recorded(folder, SCENARIOS[name], never_synced=never_synced), until=found)
    assert any(found in message for message in wrong), wrong[:3]


def test_a_commit_before_the_bytes_are_synced_is_found_out(folder: Path) -> None:
    early = recorded(folder, SCENARIOS["later save"])
    files = {operation.handle for operation in early.record if operation.flags & os.O_CREAT}
    renamed = [operation.kind for operation in early.record].index("rename")
    late = [operation for operation in early.record if operation.kind == "fsync" and operation.handle in files]
    rest = [operation for operation in early.record if operation not in late]
    assert len(late) == 2
    early.record = [*rest[: renamed - 1], *late, *rest[renamed - 1 :]]
    assert [operation.kind for operation in early.record[renamed - 2 : renamed + 1]] == ["rename", "fsync", "fsync"]
    _, wrong = violations(folder, early, until="rank_00000.safetensors")
    assert any("rank_00000.safetensors" in message for message in wrong), wrong[:3]


@pytest.mark.slow
def test_no_sync_of_a_save_can_be_left_out(folder: Path) -> None:
    """But for those that another one makes up for before the commit."""
    whole = recorded(folder / "whole", SCENARIOS["later save"])
    opened = {operation.handle: _bare(operation.path) for operation in whole.record if operation.kind == "open"}
    needed = {}
    for index, operation in enumerate(whole.record):
        if operation.kind == "fsync":
            without = prepare(folder / str(index), SCENARIOS["later save"])
            without.record = whole.record[:index] + whole.record[index + 1 :]
            needed[index, opened[operation.handle]] = bool(violations(folder / str(index), without, until="")[1])
    assert [(path, found) for (_, path), found in needed.items()] == [
        ("runs", False),
        ("runs/run", False),
        ("runs/run/step_00000003.tmp/rank_00000.safetensors", True),
        ("runs/run/step_00000003.tmp", False),
        ("runs/run/step_00000003.tmp/manifest.json", True),
        ("runs/run/step_00000003.tmp", True),
        ("runs/run", True),
    ]


def _bare(path: str) -> str:
    return re.sub("-[0-9a-f]{32}", "", path)


# The model knows what a disk may do, and no more.


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "old").write_bytes(b"old bytes")
    (tmp_path / "pool").mkdir()
    return Disk(tmp_path / "disk", tmp_path / "pool")


def seen(disk: Disk, folder: Path) -> set[tuple[tuple[str, bytes], ...]]:
    """Path and bytes of all files in each state."""
    found = set()
    for number, state in enumerate(disk.states()):
        shown = folder / f"shown_{number}"
        disk.show(state, shown)
        files = (path for path in sorted(shown.rglob("*")) if path.is_file())
        found.add(tuple((str(path.relative_to(shown)), path.read_bytes()) for path in files))
        shutil.rmtree(shown)
    return found


OLD = ("old", b"old bytes")


def write_new(disk: Disk) -> None:
    disk.apply(Operation(kind="open", path="new", handle="new", flags=os.O_CREAT | os.O_WRONLY))
    disk.apply(Operation(kind="write", handle="new", offset=2, data=b"abcd"))


def sync(disk: Disk, handle: str) -> None:
    if handle == "top":
        disk.apply(Operation(kind="open", path=".", handle="top"))
    disk.apply(Operation(kind="fsync", handle=handle))


def test_what_is_not_synced_may_be_lost_cut_or_zeros(disk: Disk, tmp_path: Path) -> None:
    write_new(disk)
    contents = (b"", b"\0\0ab", b"\0\0\0\0\0\0", b"\0\0abcd")
    assert seen(disk, tmp_path) == {(OLD,), *((("new", content), OLD) for content in contents)}


def test_syncing_a_file_does_not_sync_its_name(disk: Disk, tmp_path: Path) -> None:
    write_new(disk)
    sync(disk, "new")
    assert seen(disk, tmp_path) == {(OLD,), (("new", b"\0\0abcd"), OLD)}


def test_syncing_a_folder_does_not_sync_what_is_in_its_files(disk: Disk, tmp_path: Path) -> None:
    write_new(disk)
    sync(disk, "top")
    assert len(seen(disk, tmp_path)) == 4
    assert all(dict(files).keys() == {"new", "old"} for files in seen(disk, tmp_path))


def test_what_is_synced_stays(disk: Disk, tmp_path: Path) -> None:
    write_new(disk)
    sync(disk, "new")
    sync(disk, "top")
    assert seen(disk, tmp_path) == {(("new", b"\0\0abcd"), OLD)}


def test_a_reserved_length_is_zeros_or_nothing(disk: Disk, tmp_path: Path) -> None:
    disk.apply(Operation(kind="open", path="new", handle="new", flags=os.O_CREAT | os.O_WRONLY))
    sync(disk, "top")
    disk.apply(Operation(kind="allocate", handle="new", length=3))
    assert seen(disk, tmp_path) == {(("new", b""), OLD), (("new", b"\0\0\0"), OLD)}


def test_a_rename_happens_or_not_and_names_change_in_any_order(disk: Disk, tmp_path: Path) -> None:
    write_new(disk)
    sync(disk, "new")
    sync(disk, "top")
    disk.apply(Operation(kind="rename", path="old", new_path="older"))
    disk.apply(Operation(kind="unlink", path="new"))
    new, older = ("new", b"\0\0abcd"), ("older", b"old bytes")
    assert seen(disk, tmp_path) == {(new, OLD), (new, older), (OLD,), (older,)}


def test_a_folder_that_loses_its_name_takes_all_in_it_along(disk: Disk, tmp_path: Path) -> None:
    disk.apply(Operation(kind="mkdir", path="folder"))
    disk.apply(Operation(kind="open", path="folder/file", handle="file", flags=os.O_CREAT | os.O_WRONLY))
    disk.apply(Operation(kind="open", path="folder", handle="folder"))
    sync(disk, "folder")
    assert seen(disk, tmp_path) == {(OLD,), (("folder/file", b""), OLD)}
    disk.apply(Operation(kind="rename", path="folder", new_path="renamed"))
    # The second name may be there without the first.
    assert seen(disk, tmp_path) == {(OLD,), (("folder/file", b""), OLD), (OLD, ("renamed/file", b""))}
