"""A process is killed with SIGKILL at each moment of a save that leaves something else, and in the middle of each write.

Which calls there are is counted first, in a save that nobody disturbs; then each gets a save of its own, in processes
of its own. What is left is looked at from this process. Calls that change nothing which outlives their process leave
what was there after the call before: one kill stands for all of them. ``make test`` tries each kind of call once, the
slow tests try every moment.
"""

import contextlib
import functools
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckptrun.config.checkpoint import SaveMode
from ckptrun.engine.backends.system_calls import SystemCalls
from ckptrun.engine.commit import list_leftovers, remove_leftovers
from ckptrun.engine.layout import LeftoverKind, parse_leftover, step_name
from tests.support.faulty_calls import CHANGE_NOTHING, CountingCalls, KillingCalls, calls_in
from tests.support.forked import Forker
from tests.support.killed_ranks import run_until_killed
from tests.support.known_saves import LARGE, PROCESS, SMALL, SYNC, THREAD, manage, place, save, versions_in
from tests.support.run_ranks import run_ranks

pytestmark = [
    pytest.mark.crash,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]

Act = Callable[[Path, SystemCalls], None]
Folders = dict[tuple[int, ...], Path]


@dataclass(frozen=True)
class Case:
    """What lies there, and the save that is killed."""

    earlier: tuple[int, ...]
    step: int
    version: int
    keeps_last: bool = False
    """Whether it is the save of a run that then removes all earlier checkpoints."""
    size: int = LARGE


CASES = {
    "first": Case(earlier=(), step=1, version=1),
    "later": Case(earlier=(1, 2), step=3, version=3),
    "overwrite": Case(earlier=(1, 2), step=2, version=9),
    "retention": Case(earlier=(1, 2), step=3, version=3, keeps_last=True),
}


def save_once(case: Case, mode: SaveMode, folder: Path, calls: SystemCalls) -> None:
    """Make the save of ``case``, up to its end or that of this process."""
    target = place(folder / "run", case.step, calls)
    if case.keeps_last:
        manage(target.parent, case.step, case.version, mode=mode, size=case.size)
    else:
        save(target, case.version, mode=mode, overwrite=case.step in case.earlier, size=case.size)
    (folder / "reported").touch()


def check(case: Case, folder: Path) -> None:
    """What a killed save must have left behind, and what must still be possible."""
    root = folder / "run"
    before = {step: step for step in case.earlier}
    after = {**before, case.step: case.version}
    allowed = [before, after]
    if case.keeps_last:
        allowed += [{step: after[step] for step in after if step > removed} for removed in case.earlier]
    # Between its two renames an overwrite leaves the old version to remove_leftovers().
    between = [{step: version for step, version in before.items() if step != case.step}]
    # Whatever is listed loads, bitwise.
    assert versions_in(root) in allowed + between
    remove_leftovers(root)
    found = versions_in(root, through_dcp=False)
    assert found in allowed
    assert found.get(case.step) == case.version or not (folder / "reported").exists()
    assert names_in(root) == [step_name(step) for step in sorted(found)]
    save(place(root, case.step), 7, size=SMALL, overwrite=case.step in found)
    assert versions_in(root, through_dcp=False) == {**found, case.step: 7}
    assert list_leftovers(root) == []


def names_in(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir()) if root.exists() else []


@dataclass(frozen=True)
class Kill:
    """Where a process dies."""

    number: int
    call: str
    target: str
    half: bool = False

    def __str__(self) -> str:
        where = "in the middle of" if self.half else "before"
        return f"killed {where} call {self.number}: {self.call} {self.target}"


def kills_of(calls: list[tuple[str, str]], *, every: bool) -> list[Kill]:
    """The kills after which something else is left, that a process that makes these calls can die of.

    With ``every=False`` only the last one of each kind of call.
    """
    kills = []
    changed = True
    for number, (call, target) in enumerate(calls, start=1):
        if changed or not every:
            kills.append(Kill(number, call, target))
        changed = call not in _LEAVE_NOTHING
        if call == "pwrite":
            kills.append(Kill(number, call, target, half=True))
    assert len({call for call, _ in calls}) > 6
    return kills if every else list({(kill.call, kill.half): kill for kill in kills}.values())


_LEAVE_NOTHING = CHANGE_NOTHING | {"fsync"}
"""A sync changes what a power cut leaves (see ``test_power_cut``), not what a kill does."""


@contextlib.contextmanager
def prepared(folder: Path, before: Path) -> Iterator[Path]:
    """A folder as it was before; its files are links, so whoever writes into one is found out."""
    shutil.copytree(before, folder, copy_function=os.link)
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def about(kill: Kill) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        raise AssertionError(f"{kill}: {type(error).__name__}: {error}") from error


def count_calls(forker: Forker, act: Act, folder: Path, before: Path) -> list[tuple[str, str]]:
    """The calls of ``act``, which nobody disturbs."""
    with prepared(folder / "counted", before) as run:
        assert forker.run(act, run, CountingCalls(folder / "calls")).code == 0
    calls = calls_in(folder / "calls")
    (folder / "calls").unlink()
    return calls


def kill_at_each(act: Act, folder: Path, before: Path, check: Callable[[Path], None], *, every: bool) -> None:
    """Count the calls that one process makes in ``act``; kill it at each of them."""
    with Forker() as forker:
        calls = count_calls(forker, act, folder, before)
        for kill in kills_of(calls, every=every):
            with prepared(folder / "killed", before) as run, about(kill):
                assert forker.run(act, run, KillingCalls(kill.number, half=kill.half)).code == -9
                check(run)
        # There is no call that was not counted.
        with prepared(folder / "unharmed", before) as run:
            assert forker.run(act, run, KillingCalls(len(calls) + 1)).code == 0


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Folders with earlier checkpoints."""
    found = {}
    for steps in {case.earlier for case in CASES.values()}:
        found[steps] = tmp_path_factory.mktemp("earlier")
        for step in steps:
            save(place(found[steps] / "run", step), step, size=SMALL)
    return found


@pytest.mark.parametrize("name", ["overwrite", "retention"])
def test_a_save_killed_at_each_kind_of_call(name: str, earlier: Folders, tmp_path: Path) -> None:
    case = CASES[name]
    act = functools.partial(save_once, case, SYNC)
    kill_at_each(act, tmp_path, earlier[case.earlier], functools.partial(check, case), every=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    # What a later save calls, one that then removes old checkpoints calls too; a thread calls what the rank would.
    [("first", SYNC), ("overwrite", SYNC), ("overwrite", THREAD), ("retention", THREAD)],
)
def test_a_save_killed_at_every_call(name: str, mode: SaveMode, earlier: Folders, tmp_path: Path) -> None:
    case = CASES[name]
    act = functools.partial(save_once, case, mode)
    kill_at_each(act, tmp_path, earlier[case.earlier], functools.partial(check, case), every=True)


def clean_up(folder: Path, calls: SystemCalls) -> None:
    remove_leftovers(place(folder / "run", 1, calls).parent)


def leave_everything(folder: Path, before: Path) -> None:
    """Kill an overwrite between its two renames, a removal between two files, and a save: leftovers of every kind."""
    shutil.copytree(before, folder / "left")
    deaths = [
        (Case(earlier=(2,), step=2, version=9, size=SMALL), "rename", 2),
        (Case(earlier=(1,), step=3, version=3, keeps_last=True, size=SMALL), "unlink", 3),
        (Case(earlier=(3,), step=4, version=4, size=SMALL), "fsync", 4),
    ]
    with Forker() as forker:
        for case, call, nth in deaths:
            act = functools.partial(save_once, case, SYNC)
            calls = count_calls(forker, act, folder, folder / "left")
            numbers = [number for number, (made, _) in enumerate(calls, start=1) if made == call]
            assert forker.run(act, folder / "left", KillingCalls(numbers[nth - 1])).code == -9


def check_cleaned(folder: Path) -> None:
    root = folder / "run"
    assert versions_in(root) in ({3: 3}, {2: 2, 3: 3})
    remove_leftovers(root)
    assert versions_in(root) == {2: 2, 3: 3}
    assert names_in(root) == [step_name(2), step_name(3)]


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_removing_leftovers_killed_at_each_call(every: bool, earlier: Folders, tmp_path: Path) -> None:
    leave_everything(tmp_path, earlier[1, 2])
    kinds = {parse_leftover(name).kind for name in names_in(tmp_path / "left" / "run") if parse_leftover(name)}
    assert kinds == set(LeftoverKind)
    kill_at_each(clean_up, tmp_path, tmp_path / "left", check_cleaned, every=every)


# Two ranks.


def kill_rank_at_each(
    case: Case, mode: SaveMode, folder: Path, before: Path, *, rank: int, maker: int, every: bool
) -> None:
    """Count the calls of one of two ranks, then kill it at each of them."""
    with prepared(folder / "counted", before) as run:
        run_ranks(save_once, 2, case, mode, run, CountingCalls(folder / "calls", rank=rank, maker=maker))
    calls = calls_in(folder / "calls")
    for kill in kills_of(calls, every=every):
        with prepared(folder / "killed", before) as run, about(kill):
            killing = KillingCalls(kill.number, rank=rank, maker=maker, half=kill.half)
            codes = run_until_killed(save_once, 2, case, mode, run, killing)
            assert codes[rank] == -9
            check(case, run)
    with prepared(folder / "unharmed", before) as run:
        run_ranks(save_once, 2, case, mode, run, KillingCalls(len(calls) + 1, rank=rank, maker=maker))
        assert versions_in(run / "run")[case.step] == case.version


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "mode", "rank", "maker"),
    [
        # What a first save leaves, others leave too; removing old checkpoints is all that follows a commit.
        ("later", THREAD, 1, 0),
        ("overwrite", SYNC, 0, 0),
        ("overwrite", THREAD, 1, 1),
        ("retention", THREAD, 0, 1),
    ],
)
def test_one_of_two_ranks_killed_at_every_call(
    name: str, mode: SaveMode, rank: int, maker: int, earlier: Folders, tmp_path: Path
) -> None:
    case = CASES[name]
    kill_rank_at_each(case, mode, tmp_path, earlier[case.earlier], rank=rank, maker=maker, every=True)


@pytest.mark.distributed
def test_a_rank_killed_at_each_kind_of_call(earlier: Folders, tmp_path: Path) -> None:
    case = CASES["later"]
    kill_rank_at_each(case, THREAD, tmp_path, earlier[case.earlier], rank=1, maker=0, every=False)


def save_in_process(case: Case, folder: Path, calls: SystemCalls) -> str:
    """Save in DCP's saving process; return what the save says of its death."""
    try:
        save_once(case, PROCESS, folder, calls)
    except Exception as error:
        return str(error)
    return ""


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("name", "rank", "deaths"), [("later", 1, [("pwrite", 2)]), ("overwrite", 0, [("rename", 2), ("unlink", 1)])]
)
def test_a_saving_process_killed(
    name: str, rank: int, deaths: list[tuple[str, int]], earlier: Folders, tmp_path: Path
) -> None:
    case = CASES[name]
    with prepared(tmp_path / "counted", earlier[case.earlier]) as run:
        counting = CountingCalls(tmp_path / "calls", rank=rank)
        assert run_ranks(save_in_process, 2, case, run, counting, fresh=True) == ["", ""]
    calls = calls_in(tmp_path / "calls")
    for call, nth in deaths:
        number = [number for number, (made, _) in enumerate(calls, start=1) if made == call][nth - 1]
        killing = KillingCalls(number, rank=rank, half=call == "pwrite", log=tmp_path / call)
        with prepared(tmp_path / "run", earlier[case.earlier]) as run:
            says = run_ranks(save_in_process, 2, case, run, killing, fresh=True)
            assert (tmp_path / call).exists()
            assert all(says)
            assert "process is dead" in says[rank]
            check(case, run)
