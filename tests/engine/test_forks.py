"""A forked child shares nothing with its parent that a save of either needs: memory, locks, threads, locked files, plans.

Every child is forked from this process, while it has what a process has after, or in the middle of, a save.
"""

import gc
import mmap
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import _async_process_executor as dcp_executor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.planner import SavePlan

from ckptrun import HostStager, PlanCache, ShardReader, ShardWriter
from ckptrun.checkpoint.manager import CheckpointManager
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.config.checkpoint import SaveMode
from ckptrun.digest import digest
from ckptrun.engine import cycle_collector, write_files
from ckptrun.engine.commit import hold_save, is_committed, list_leftovers, save_owner
from ckptrun.engine.cycle_collector import collection_paused
from ckptrun.engine.layout import new_save_id
from ckptrun.engine.locate import locate
from ckptrun.engine.read_state import read_state
from ckptrun.errors import CheckpointError, InternalError
from ckptrun.forks import OfProcess, fork_count, this_process
from ckptrun.ranks import Ranks
from tests.support.fork_here import exits, in_child, leave_out_finalizers_of_others
from tests.support.storage_backends import WaitingBackend, on, wait_for

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")


@pytest.fixture(autouse=True, scope="module")
def _finalizers_of_others_are_theirs() -> None:
    leave_out_finalizers_of_others()


def state(value: float, size: int = 300_000) -> dict[str, Any]:
    return {"w": torch.full((size,), float(value)), "n": value}


def save(value: float, folder: Path, **options: Any) -> None:
    dcp.save(state(value), storage_writer=ShardWriter(folder), no_dist=True, **options)


def loaded(folder: Path) -> list[float]:
    """The values in the checkpoint, each once."""
    into = {"w": torch.zeros(300_000), "n": 0}
    dcp.load(into, storage_reader=ShardReader(folder), no_dist=True)
    return [*into["w"].unique().tolist(), float(into["n"])]


def save_and_load(value: float, folder: Path) -> list[float]:
    save(value, folder)
    return loaded(folder)


def test_a_child_is_another_process_and_so_is_its_child() -> None:
    made = OfProcess(object)
    mine, mark, forks = made.get(), this_process(), fork_count()

    def below(depth: int) -> tuple[bool, bool, int]:
        own = made.get()
        if depth:
            return in_child(below, depth - 1)
        return own is mine, this_process() is mark, fork_count() - forks

    assert in_child(below, 0) == (False, False, 1)
    assert in_child(below, 1) == (False, False, 3)
    assert (made.get(), this_process(), fork_count() - forks) == (mine, mark, 2)


def test_the_blocks_of_saves_are_private(tmp_path: Path) -> None:
    save(1, tmp_path / "parent")
    assert any(write_files._KEPT.values())
    (block,) = write_files._take_blocks(1, mmap.PAGESIZE)
    block[:] = b"p" * mmap.PAGESIZE

    def scribble() -> bool:
        block[:] = b"c" * mmap.PAGESIZE
        return any(write_files._KEPT.values())

    assert in_child(scribble) is False
    assert block[:] == b"p" * mmap.PAGESIZE


def test_children_that_save_at_once_store_their_own_values(tmp_path: Path) -> None:
    """Both wait for each other in the middle of a file, with all of it in their blocks."""
    save(0, tmp_path / "parent")

    def child(own: int, other: int) -> list[list[float]]:
        def reached(point: str) -> None:
            if point == "after_write":
                (tmp_path / f"{own}.{len(done)}").touch()
                wait_for(tmp_path / f"{other}.{len(done)}")

        done: list[list[float]] = []
        for turn in range(4):
            folder = tmp_path / f"{own}_{turn}"
            dcp.save(state(10 * own + turn), storage_writer=ShardWriter(folder, reached=reached), no_dist=True)
            done.append(loaded(folder))
        return done

    found: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda own=own: found.update({own: in_child(child, own, 3 - own)})) for own in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {own: [[10.0 * own + turn] * 2 for turn in range(4)] for own in (1, 2)}


def test_a_child_of_a_child_saves_and_loads(tmp_path: Path) -> None:
    save(1, tmp_path / "parent")
    child = in_child(lambda: [save_and_load(2, tmp_path / "c"), in_child(save_and_load, 3, tmp_path / "cc")])
    assert child == [[2, 2], [3, 3]]


@contextmanager
def in_another_thread(hold: Callable[[threading.Event, threading.Event], None]) -> Iterator[None]:
    """While ``hold(held, free)`` is between setting the one and waiting for the other in a thread."""
    held, free = threading.Event(), threading.Event()
    thread = threading.Thread(target=hold, args=(held, free))
    thread.start()
    assert held.wait(60)
    try:
        yield
    finally:
        free.set()
        thread.join()


def test_locks_that_other_threads_hold_are_free_in_the_child(tmp_path: Path) -> None:
    def hold(held: threading.Event, free: threading.Event) -> None:
        with write_files._LOCK, cycle_collector._LOCK:
            held.set()
            free.wait(60)

    with in_another_thread(hold):
        assert in_child(save_and_load, 4, tmp_path / "c") == [4, 4]


def test_the_cycle_collector_runs_in_a_child_forked_while_another_thread_paused_it() -> None:
    def hold(held: threading.Event, free: threading.Event) -> None:
        with collection_paused():
            held.set()
            free.wait(60)

    def child() -> list[bool]:
        seen = [gc.isenabled()]
        with collection_paused():
            seen.append(gc.isenabled())
        return [*seen, gc.isenabled()]

    with in_another_thread(hold):
        assert in_child(child) == [True, False, True]
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_thread_that_forks_where_the_collector_is_paused_leaves_that_in_the_child() -> None:
    def child() -> bool:
        return gc.isenabled()

    with collection_paused():
        assert in_child(child) is False
    assert gc.isenabled()


@pytest.mark.parametrize("options", [{}, {"overlapped": True}, {"shared": True}], ids=str)
def test_a_child_forked_beside_a_save_in_flight_saves_with_the_same_objects(
    tmp_path: Path, options: dict[str, bool]
) -> None:
    stager, plans = HostStager(**options), PlanCache()
    gate = tmp_path / "gate"

    def start(value: float, url: Any) -> Any:
        writer = ShardWriter(url)
        response = dcp.async_save(
            state(value), storage_writer=writer, async_stager=stager, planner=plans.planner(), no_dist=True
        )
        return getattr(response, "upload_completion", response)

    start(1, tmp_path / "first").result()
    upload = start(2, on(WaitingBackend(gate), tmp_path / "parent"))
    wait_for(gate.with_suffix(".arrived"))

    def child() -> list[float]:
        for value in (3, 4):
            start(value, tmp_path / f"child{value}").result()
        stager.close()
        return [*loaded(tmp_path / "child3"), *loaded(tmp_path / "child4")]

    assert in_child(child) == [3, 3, 4, 4]
    gate.touch()
    upload.result()
    assert loaded(tmp_path / "parent") == [2, 2]
    assert loaded(tmp_path / "first") == [1, 1]
    assert list_leftovers(tmp_path) == []
    stager.close()


def test_shared_memory_that_a_child_may_read_is_not_used_again() -> None:
    stager = HostStager(shared=True)
    staged = stager.stage(state(1))
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(int(staged["w"].unique().tolist()[0]))
    (block,) = stager._memory._blocks
    del staged
    again = stager.stage(state(2))
    os.close(theirs)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    (other,) = stager._memory._blocks
    assert other is not block
    del again
    stager.stage(state(3))
    assert stager._memory._blocks == [other]


def test_a_child_that_ends_or_drops_the_writer_leaves_its_parents_lock(tmp_path: Path) -> None:
    target, save_id = locate(tmp_path / "c"), new_save_id()
    writer = ShardWriter(target)
    writer.set_up_storage_writer(True)
    writer.prepare_global_plan([SavePlan([])])

    def child() -> None:
        writer._release()
        save(5, tmp_path / "of_child")

    (lock,) = tmp_path.glob("*.lock")
    assert exits(child) == 0
    assert exits(lambda: None) == 0
    assert lock.exists()
    release = hold_save(target, save_id)
    assert save_owner(target, save_id) is not None
    assert in_child(lambda: save_owner(target, save_id)) is not None
    release()
    assert save_owner(target, save_id) is None


def test_a_child_that_outlives_its_parent_does_not_hold_the_lock_on(tmp_path: Path) -> None:
    target, save_id = locate(tmp_path / "c"), new_save_id()
    alive, end = os.pipe()
    begun, begins = os.pipe()

    parent = os.fork()
    if parent == 0:
        hold_save(target, save_id)
        if os.fork() == 0:
            os.close(end)
            os.write(begins, b"B")
            os.read(alive, 1)
        os._exit(0)
    os.waitpid(parent, 0)
    # Until it runs, a child holds what its parent held.
    assert os.read(begun, 1) == b"B"
    assert save_owner(target, save_id) is None
    for number in (alive, end, begun, begins):
        os.close(number)


def test_the_middle_of_a_save_is_refused_in_a_child_and_goes_on_in_the_parent(tmp_path: Path) -> None:
    """A callback forks, and the child returns into the save as if it were its parent."""
    pids: list[int] = []

    def reached(point: str) -> None:
        if point == "writing":
            pids.append(os.fork())

    outcome = "committed"
    try:
        dcp.save(state(6), storage_writer=ShardWriter(tmp_path / "c", reached=reached), no_dist=True)
    except CheckpointException as error:
        outcome = f"{type(error.failures[0][0]).__name__}"
    if pids == [0]:
        os._exit(40 + (outcome == InternalError.__name__))
    assert outcome == "committed"
    assert os.waitstatus_to_exitcode(os.waitpid(pids[0], 0)[1]) == 41
    assert loaded(tmp_path / "c") == [6, 6]


def test_a_save_that_was_planned_in_the_parent_is_refused_by_name_in_the_child(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "c")
    writer.set_up_storage_writer(True)
    (plan,) = writer.prepare_global_plan([SavePlan([])])

    def child() -> list[str]:
        said = []
        for call in (lambda: writer.write_data(plan, None), lambda: writer.finish(None, [])):  # type: ignore[arg-type]
            with pytest.raises(CheckpointError, match=r"planned in another process.*Start a save of its own") as error:
                call()
            said.append(str(tmp_path / "c") in str(error.value))
        writer.reset(tmp_path / "own")
        dcp.save(state(7), storage_writer=writer, no_dist=True)
        return [*said, *loaded(tmp_path / "own")]

    assert in_child(child) == [True, True, 7, 7]
    assert not is_committed(locate(tmp_path / "c"))


def test_the_manager_of_a_rank_refuses_to_serve_its_child(tmp_path: Path) -> None:
    manager = CheckpointManager(
        tmp_path,
        mode=SaveMode.sync,
        keep=KeepLast(count=1),
        ranks=Ranks(None),
        saving_group=None,
        stager=None,
        facts={},
    )

    def child() -> str:
        with pytest.raises(CheckpointError, match="forked from a rank cannot save for it") as error:
            manager.wait()
        return str(error.value)

    assert "ShardWriter of its own" in in_child(child)
    manager.close()


def test_a_child_plans_anew(tmp_path: Path) -> None:
    plans = PlanCache()
    save(1, tmp_path / "1", planner=plans.planner())
    planner = plans.planner()
    assert planner._plans.final is not None
    assert in_child(lambda: planner._plans.final is None) is True

    def child() -> list[float]:
        save(2, tmp_path / "2", planner=plans.planner())
        return loaded(tmp_path / "2")

    assert in_child(child) == [2, 2]


def test_plans_for_more_ranks_are_not_those_of_one() -> None:
    planner = PlanCache().planner()
    planner.set_up_planner({"w": torch.ones(2)}, is_coordinator=True)
    planner.finish_plan(planner.create_global_plan([planner.create_local_plan()])[0][0])
    assert not planner.create_local_plan().usable
    with pytest.raises(InternalError, match="Rank 1 says that its plan is known"):
        planner.create_global_plan([planner.create_local_plan()] * 2)


def test_digests_are_made_in_a_child_as_in_its_parent() -> None:
    """As a loader's worker would that checks its samples."""
    value = torch.arange(200_000.0)
    assert in_child(digest, value) == digest(value)


def test_dcps_saving_process_is_not_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    of_parent = object()
    monkeypatch.setattr(dcp_executor, "_CHECKPOINT_PROCESS", of_parent)
    assert in_child(lambda: dcp_executor._CHECKPOINT_PROCESS is None) is True
    assert dcp_executor._CHECKPOINT_PROCESS is of_parent


@pytest.mark.usefixtures("here")
def test_a_child_works_with_an_object_store_beside_its_parent(url: str) -> None:
    save(1, url + "/parent")  # type: ignore[arg-type]  # a URL
    place = locate(f"{url}/lock")
    release = place.backend.hold(place.path, "note")

    def child() -> list[float]:
        release()
        return save_and_load(2, url + "/child")  # type: ignore[arg-type]  # a URL

    assert in_child(child) == [2, 2]
    assert exits(lambda: save(3, url + "/other")) == 0  # type: ignore[arg-type]  # a URL
    assert place.backend.size(place.path) == 4
    release()
    for number, name in enumerate(("parent", "child", "other"), start=1):
        assert read_state(f"{url}/{name}")["n"] == number
    save(4, url + "/after")  # type: ignore[arg-type]  # a URL
    assert loaded(url + "/after") == [4, 4]  # type: ignore[arg-type]  # a URL
