"""What a thread is doing, from the files on its stack."""

import concurrent.futures
import sys
import threading
from pathlib import Path

import pytest
import torch

import ckptrun
from ckptrun.run.watch.stacks import Activity, activity_of, describe, is_of_checkpoint

PACKAGE = Path(ckptrun.__file__).parent
TORCH = Path(torch.__file__).parent
STDLIB = Path(threading.__file__).parent
USER = Path.cwd() / "examples" / "mine.py"
TRAINER = PACKAGE / "trainer.py"
MANAGER = PACKAGE / "checkpoint" / "manager.py"
GATHER = TORCH / "distributed" / "distributed_c10d.py"
FSDP1 = TORCH / "distributed" / "fsdp" / "fully_sharded_data_parallel.py"
MODULE = TORCH / "nn" / "modules" / "module.py"
ENGINE = TORCH / "autograd" / "graph.py"
WAIT = STDLIB / "threading.py"
FUTURE = STDLIB / "concurrent" / "futures" / "_base.py"


def frame_of(*files: Path, name: str = "function"):
    """The innermost frame of a stack of functions in ``files``, the outermost first."""
    call = lambda: sys._getframe(1)  # noqa: E731  # the frame of whoever calls
    for file in reversed(files):
        space = {"call": call}
        exec(compile(f"def {name}():\n    return call()", str(file), "exec"), space)
        call = space[name]
    return call()


@pytest.mark.parametrize(
    ("files", "activity"),
    [
        ((TRAINER,), Activity.working),
        ((TRAINER, USER, WAIT), Activity.working),
        ((TRAINER, GATHER), Activity.collective),
        ((TRAINER, MODULE, USER, MODULE, FSDP1, GATHER), Activity.collective),
        ((TRAINER, MODULE, FSDP1, MODULE, USER), Activity.working),
        ((TRAINER, MODULE, FSDP1, TORCH / "_dynamo" / "convert_frame.py", WAIT), Activity.working),
        ((TRAINER, TORCH / "nn" / "parallel" / "distributed.py"), Activity.collective),
        ((TRAINER, USER, TORCH / "distributed" / "tensor" / "_dispatch.py"), Activity.working),
        ((TRAINER, FUTURE, WAIT), Activity.working),
        ((TRAINER, MANAGER, FUTURE, WAIT), Activity.saving),
        ((TRAINER, MANAGER), Activity.working),
        ((TRAINER, MANAGER, TORCH / "distributed" / "checkpoint" / "utils.py", GATHER), Activity.collective),
        ((PACKAGE / "launch" / "rank.py", PACKAGE / "run" / "watch" / "failure.py"), Activity.failing),
    ],
)
def test_the_innermost_file_that_says_something_decides(files, activity) -> None:
    assert activity_of(frame_of(*files)) is activity


def test_backward_waits_unless_it_runs_the_users_code() -> None:
    assert activity_of(frame_of(TRAINER, ENGINE, name="_engine_run_backward")) is Activity.collective
    assert activity_of(frame_of(TRAINER, ENGINE, USER, name="_engine_run_backward")) is Activity.working


def test_with_cuda_our_own_code_may_wait_for_the_device(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert activity_of(frame_of(TRAINER)) is Activity.device
    assert activity_of(frame_of(TRAINER, USER)) is Activity.working
    assert activity_of(frame_of(TRAINER, PACKAGE / "fault" / "injector.py", WAIT)) is Activity.working
    assert activity_of(frame_of(TRAINER, MANAGER)) is Activity.working


def test_threads_of_a_save_are_told_from_idle_ones() -> None:
    assert is_of_checkpoint(frame_of(WAIT, FUTURE, PACKAGE / "checkpoint" / "write_files.py", WAIT))
    assert not is_of_checkpoint(frame_of(WAIT, FUTURE))


def test_a_place_is_given_as_a_user_would_write_it() -> None:
    assert describe(frame_of(TRAINER, USER)) == "examples/mine.py:2 in function"
    assert describe(frame_of(TRAINER, USER, FUTURE, WAIT)) == (
        "threading.py:2 in function, called from examples/mine.py:2 in function"
    )
    assert describe(frame_of(TRAINER, GATHER)).startswith("torch/distributed/distributed_c10d.py:2 in function, ")
    assert describe(None) == "no Python frame"


def test_a_real_thread_that_sleeps_is_at_work() -> None:
    gate = threading.Event()
    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(gate.wait)
        thread = next(iter(executor._threads))
        while not waiting.running():
            pass
        activity = activity_of(sys._current_frames()[thread.ident])
        gate.set()
    assert activity is Activity.working
