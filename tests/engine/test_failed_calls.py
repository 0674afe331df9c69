"""Each system call of a save fails once, on one rank: the save fails with that error on all ranks, or it is whole.

Which calls there are is counted first, in a save that nobody disturbs. ``make test`` lets each kind of call fail once,
the errors taking turns; the slow tests let every call fail.
"""

import errno
import gc
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from ckptrun.config.checkpoint import SaveMode
from ckptrun.engine.backends.system_calls import SystemCalls
from ckptrun.engine.commit import list_in_flight, remove_leftovers
from ckptrun.engine.layout import step_name
from tests.support.faulty_calls import CountingCalls, FailingCalls, calls_in
from tests.support.forked import Forker
from tests.support.known_saves import LARGE, MEDIUM, PROCESS, SMALL, SYNC, THREAD, manage, place, save, versions_in
from tests.support.run_ranks import run_ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")

ERRORS = (errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES)
AGAIN = 7


@dataclass(frozen=True)
class Case:
    """What lies there, and the save that fails."""

    earlier: tuple[int, ...]
    step: int
    version: int
    managed: bool = False
    """Whether it is the save of a run."""
    keep_last: int | None = None


CASES = {
    "first": Case(earlier=(), step=1, version=1),
    "later": Case(earlier=(1, 2), step=3, version=3, managed=True),
    "overwrite": Case(earlier=(1, 2), step=2, version=9),
    "retention": Case(earlier=(1, 2), step=3, version=3, managed=True, keep_last=1),
}


@dataclass(frozen=True)
class Failure:
    """Which call fails, how, and on which rank."""

    number: int
    error: int
    rank: int = 0
    maker: int = 0
    lasting: bool = False


@dataclass(frozen=True)
class Outcome:
    """What one rank saw."""

    told: str
    """What the save raised, and why; empty where it went well."""
    codes: frozenset[int | None]
    """Error numbers among that."""
    not_removed: str
    """What a run is told of old checkpoints that could not be removed."""
    found: dict[int, int]
    """Step -> version after the save."""
    again: dict[int, int]
    """The same after another save of that step, with nothing that fails, and a removal of leftovers."""
    names: list[str]
    """What lies there then."""


def save_once(case: Case, mode: SaveMode, root: Path, calls: SystemCalls) -> str:
    """Make the save of ``case``; return what could not be removed after it."""
    # So that the file of each rank has two blocks.
    size = LARGE if dist.is_initialized() else MEDIUM
    target = place(root, case.step, calls)
    if not case.managed:
        save(target, case.version, mode=mode, size=size, overwrite=case.step in case.earlier)
        return ""
    commits = manage(target.parent, case.step, case.version, mode=mode, size=size, keep_last=case.keep_last)
    return "; ".join(commit.not_removed for commit in commits if commit.not_removed)


def errors_in(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, and what the ranks met."""
    while error is not None:
        yield error
        if isinstance(error, CheckpointException):
            for failure, _ in error.failures.values():
                yield from errors_in(failure)
        error = error.__cause__


def try_to_save(case: Case, mode: SaveMode, root: Path, failure: Failure, log: Path) -> Outcome:
    """Save with a call that fails, look what is there, and save again without. On every rank."""
    told, not_removed = [], ""
    gc.freeze()  # what is there now need not be looked at below
    codes: set[int | None] = set()
    calls = FailingCalls(
        failure.number, failure.error, log, rank=failure.rank, maker=failure.maker, lasting=failure.lasting
    )
    try:
        not_removed = save_once(case, mode, root, calls)
    except (Exception, CheckpointException) as error:
        told = [f"{type(found).__name__}: {found}" for found in errors_in(error)]
        codes = {getattr(found, "errno", None) for found in errors_in(error)}
    # A save that failed lets go of its lock with its writer, which the traceback holds.
    gc.collect()
    if failure.lasting:
        # A storage that renames no more cannot give a replaced version its name back either.
        remove_leftovers(root)
    found = seen_by_all(root)
    save(place(root, case.step), AGAIN, size=SMALL, mode=mode, overwrite=True)
    if not dist.is_initialized() or dist.get_rank() == 0:
        remove_leftovers(root)
    again = seen_by_all(root)
    # DCP's saving process keeps the writer of a save that failed, and so its lock, until its next garbage collection.
    held = list_in_flight(root) if mode is PROCESS else {}
    names = sorted(path.name for path in root.iterdir() if path.name.removesuffix(".lock") not in held)
    return Outcome("; ".join(told), frozenset(codes), not_removed, found, again, names)


def seen_by_all(root: Path) -> dict[int, int]:
    """The versions in ``root`` once no rank changes it."""
    if dist.is_initialized():
        dist.barrier()
    found = versions_in(root, through_dcp=False)
    if dist.is_initialized():
        dist.barrier()
    return found


def harmless(calls: list[tuple[str, str]]) -> set[int]:
    """Numbers of the calls that may fail while the save succeeds.

    - Right before the lock: the name of the run's folder is synced, in case that who made it was killed before. That
      folder is there, and mostly was long ago; the folder above it may be one that a user cannot even open.
    - After the folder has its name and that is synced: the checkpoint is committed. What is left is to remove the lock
      and the version that was replaced, both known as leftovers, and the checkpoints that a run does not keep, of
      which the run is told.
    """
    names = [target for _, target in calls]
    lock = next((number for number, name in enumerate(names, start=1) if name.endswith(".lock")), 0)
    renames = [number for number, (call, name) in enumerate(calls, start=1) if call == "rename" and ".tmp-" in name]
    if not renames:
        return set()
    rename = renames[0]
    assert [call for call, _ in calls[rename : rename + 3]] == ["open", "fsync", "close"]
    assert [call for call, _ in calls[lock - 4 : lock]] == ["open", "fsync", "close", "open"]
    return {lock - 3, lock - 2, lock - 1, *range(rename + 4, len(calls) + 1)}


def check(case: Case, failure: Failure, calls: list[tuple[str, str]], outcomes: list[Outcome]) -> None:
    """What must be true however the save ended."""
    before = {step: step for step in case.earlier}
    after = {**before, case.step: case.version}
    found = outcomes[0].found
    assert [outcome.found for outcome in outcomes] == [found] * len(outcomes)
    if failure.number in harmless(calls):
        assert [outcome.told for outcome in outcomes] == [""] * len(outcomes)
        kept = {case.step: case.version} if case.keep_last else after
        if found != kept:
            # The removal failed; the run is told, and nothing is half removed.
            assert found.items() <= after.items()
            assert found[case.step] == case.version
            assert os.strerror(failure.error) in outcomes[0].not_removed
    else:
        for outcome in outcomes:
            assert failure.error in outcome.codes
            assert os.strerror(failure.error) in outcome.told
        assert found == before
    assert outcomes[0].again == {**found, case.step: AGAIN}
    assert outcomes[0].names == [step_name(step) for step in sorted(outcomes[0].again)]


def failures_of(calls: list[tuple[str, str]], which: str, **options: Any) -> list[Failure]:
    """What fails: ``"kinds"``: one call of each kind, before the commit and after it; or all ``"calls"``.

    Errors take turns. What goes on failing starts with a call that does matter.
    """
    spared = harmless(calls)
    numbers = [number for number in range(1, len(calls) + 1) if not (options.get("lasting") and number in spared)]
    if which == "kinds":
        numbers = sorted({(calls[number - 1][0], number in spared): number for number in numbers}.values())
    return [Failure(number, ERRORS[index % len(ERRORS)], **options) for index, number in enumerate(numbers)]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, ...], Path]:
    """Folders with earlier checkpoints."""
    found = {}
    for steps in {case.earlier for case in CASES.values()}:
        found[steps] = tmp_path_factory.mktemp("earlier") / "above"
        found[steps].mkdir()
        for step in steps:
            save(place(found[steps] / "run", step), step, size=SMALL)
    return found


def copy(before: Path, folder: Path) -> Path:
    """Make ``folder`` as it was before, of links; return the root of its checkpoints."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(before, folder, copy_function=os.link)
    return folder / "run"


def fail_each(case: Case, mode: SaveMode, folder: Path, before: Path, which: str, *, lasting: bool = False) -> None:
    """Let the calls of one process fail, one after the other."""
    with Forker() as forker:
        counting = CountingCalls(folder / "calls")
        assert forker.run(save_once, case, mode, copy(before, folder / "saved"), counting).code == 0
        calls = calls_in(folder / "calls")
        for failure in failures_of(calls, which, lasting=lasting):
            about = f"{failure}: {calls[failure.number - 1]}"
            log = folder / f"failed {failure.number} {failure.error}"
            try:
                root = copy(before, folder / "saved")
                outcome = forker.run(try_to_save, case, mode, root, failure, log).value
                assert calls_in(log) == [calls[failure.number - 1]]
                check(case, failure, calls, [outcome])
            except AssertionError as error:
                raise AssertionError(f"{about}: {error}") from error


@pytest.mark.parametrize("name", ["overwrite", "retention"])
def test_each_kind_of_call_fails(name: str, earlier: dict[tuple[int, ...], Path], tmp_path: Path) -> None:
    case = CASES[name]
    mode = THREAD if name == "overwrite" else SYNC
    fail_each(case, mode, tmp_path, earlier[case.earlier], "kinds")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        # A save that removes old ones makes all calls of one that does not; a thread makes those of the rank.
        ("first", SYNC),
        ("overwrite", SYNC),
        ("retention", THREAD),
    ],
)
def test_every_call_fails(name: str, mode: SaveMode, earlier: dict[tuple[int, ...], Path], tmp_path: Path) -> None:
    case = CASES[name]
    fail_each(case, mode, tmp_path, earlier[case.earlier], "calls")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["first", "overwrite", "retention"])
def test_every_call_fails_and_goes_on_failing(name: str, earlier: dict[tuple[int, ...], Path], tmp_path: Path) -> None:
    """From then on every call of that name fails, when what is left of the save is cleaned up, too."""
    case = CASES[name]
    fail_each(case, SYNC, tmp_path, earlier[case.earlier], "kinds", lasting=True)


# Two ranks.


def fail_on_ranks(
    case: Case, mode: SaveMode, folder: Path, before: Path, failures: list[Failure]
) -> list[tuple[Outcome, list[tuple[str, str]]]]:
    """Let calls fail, one save after the other, in one group; return what this rank saw, and what failed."""
    os.environ["MASTER_ADDR"] = "localhost"
    outcomes = []
    for number, failure in enumerate(failures):
        if dist.get_rank() == 0:
            copy(before, folder / "saved")
        dist.barrier()
        log = folder / f"failed {number}"
        outcome = try_to_save(case, mode, folder / "saved" / "run", failure, log)
        outcomes.append((outcome, calls_in(log)))
        dist.barrier()
    return outcomes


def fail_each_on_rank(
    case: Case, mode: SaveMode, folder: Path, before: Path, *, rank: int, maker: int, which: str
) -> None:
    """Let the calls of one of two ranks fail."""
    root = copy(before, folder / "saved")
    run_ranks(save_once, 2, case, mode, root, CountingCalls(folder / "calls", rank=rank, maker=maker))
    calls = calls_in(folder / "calls")
    failures = failures_of(calls, which, rank=rank, maker=maker)
    ranks = run_ranks(fail_on_ranks, 2, case, mode, folder, before, failures, timeout_s=300, fresh=mode is PROCESS)
    for failure, *seen in zip(failures, *ranks, strict=True):
        try:
            assert [failed for _, failed in seen] == [[calls[failure.number - 1]]] * 2
            check(case, failure, calls, [outcome for outcome, _ in seen])
        except AssertionError as error:
            raise AssertionError(f"{failure}: {calls[failure.number - 1]}: {error}") from error


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "mode", "rank", "maker", "which"),
    [
        ("later", SYNC, 1, 1, "kinds"),
        pytest.param("later", THREAD, 1, 1, "calls", marks=pytest.mark.slow),
        pytest.param("overwrite", SYNC, 0, 1, "calls", marks=pytest.mark.slow),
        pytest.param("retention", THREAD, 0, 0, "calls", marks=pytest.mark.slow),
        pytest.param("overwrite", PROCESS, 0, 1, "kinds", marks=pytest.mark.slow),
    ],
)
def test_the_calls_of_one_of_two_ranks_fail(
    name: str,
    mode: SaveMode,
    rank: int,
    maker: int,
    which: str,
    earlier: dict[tuple[int, ...], Path],
    tmp_path: Path,
) -> None:
    case = CASES[name]
    fail_each_on_rank(case, mode, tmp_path, earlier[case.earlier], rank=rank, maker=maker, which=which)


# What a file system cannot do is no failure.


class Refusing(SystemCalls):
    """A file system without one of its finer features."""

    def __init__(self, call: str, error: int) -> None:
        self._call = call
        self._error = error
        self._direct: set[int] = set()
        self.refused = 0

    def _refuse(self, call: str, *, if_it: bool = True) -> None:
        if call == self._call and if_it:
            self.refused += 1
            raise OSError(self._error, os.strerror(self._error))

    def allocate(self, descriptor: int, length: int) -> None:
        self._refuse("allocate")
        super().allocate(descriptor, length)

    def set_direct(self, descriptor: int, direct: bool) -> None:
        self._refuse("set_direct", if_it=direct)
        super().set_direct(descriptor, direct)
        (self._direct.add if direct else self._direct.discard)(descriptor)

    def pwrite(self, descriptor: int, block: memoryview, offset: int) -> int:
        self._refuse("pwrite", if_it=descriptor in self._direct)
        if self._call == "short pwrite":
            self.refused += 1
            block = block[: max(1, block.nbytes // 3)]
        return super().pwrite(descriptor, block, offset)

    def lock(self, descriptor: int) -> None:
        self._refuse("lock")
        super().lock(descriptor)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("allocate", errno.EOPNOTSUPP),
        ("allocate", errno.ENOSYS),
        ("set_direct", errno.EINVAL),
        ("pwrite", errno.EINVAL),
        ("short pwrite", 0),
        ("lock", errno.ENOLCK),
        ("lock", errno.EOPNOTSUPP),
    ],
)
def test_what_a_file_system_cannot_do_is_done_another_way(call: str, error: int, tmp_path: Path) -> None:
    calls = Refusing(call, error)
    for step in (1, 2):
        save(place(tmp_path, step, calls), step)
    assert calls.refused
    assert versions_in(tmp_path) == {1: 1, 2: 2}
    assert [path.name for path in sorted(tmp_path.iterdir())] == [step_name(1), step_name(2)]


def test_a_disk_that_is_known_to_be_too_small_is_told_before_a_byte_is_written(tmp_path: Path) -> None:
    class Full(Refusing):
        written = 0

        def free_bytes(self, folder: str) -> int:
            return 2**20

        def pwrite(self, descriptor: int, block: memoryview, offset: int) -> int:
            self.written += block.nbytes
            return super().pwrite(descriptor, block, offset)

    calls = Full("allocate", errno.EOPNOTSUPP)
    with pytest.raises(CheckpointException, match=r"No space left on device: .* bytes are needed, 1,048,576 free"):
        save(place(tmp_path, 1, calls), 1)
    assert calls.refused == 1
    # Nothing but the note in the lock.
    assert calls.written < 1000
    assert versions_in(tmp_path) == {}
