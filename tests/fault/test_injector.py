"""Faults strike where they are planned, once, in real processes; the record survives what they do."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from ckptrun.config.fault import FaultKind, FaultPoint
from ckptrun.engine.locate import locate
from ckptrun.engine.storage import ShardReader, ShardWriter
from ckptrun.errors import CheckpointDamagedError, InternalError
from ckptrun.fault import FaultInjector, FaultRecord, PlannedFault, with_faults

FORK = multiprocessing.get_context("fork")


def fault(kind: FaultKind, point: FaultPoint = FaultPoint.after_backward, **changes) -> PlannedFault:
    given = {
        "index": 0,
        "kind": kind,
        "point": point,
        "step": 3,
        "ranks": (1,),
        "share": 0.5,
        "seconds": 0.0,
        "seed": 0,
    }
    return PlannedFault(**{**given, **changes})


def injector(folder: Path, *faults: PlannedFault, rank: int = 1) -> FaultInjector:
    return FaultInjector(faults, run_dir=folder, rank=rank)


def ended(function, *args) -> int:
    """The exit code of a process of its own that calls ``function``; -9 for SIGKILL."""
    process = FORK.Process(target=function, args=args)
    process.start()
    process.join(30)
    assert process.exitcode is not None
    return process.exitcode


def reach(folder: Path, planned: PlannedFault, point: FaultPoint, step: int, rank: int) -> None:
    injector(folder, planned, rank=rank).reached(point, step)
    os._exit(0)


@pytest.mark.parametrize(
    ("kind", "code"),
    [(FaultKind.sigkill, -signal.SIGKILL), (FaultKind.exit, 1), (FaultKind.sigterm, -signal.SIGTERM)],
)
def test_a_process_ends_at_its_place_and_nowhere_else(kind, code, tmp_path) -> None:
    planned = fault(kind)
    for point, step, rank in (
        (FaultPoint.after_forward, 3, 1),
        (FaultPoint.after_backward, 2, 1),
        (FaultPoint.after_backward, 3, 0),
    ):
        assert ended(reach, tmp_path, planned, point, step, rank) == 0
    assert FaultRecord(tmp_path).fired() == []
    assert ended(reach, tmp_path, planned, FaultPoint.after_backward, 3, 1) == code
    (fired,) = FaultRecord(tmp_path).fired()
    assert str(fired) == f"{kind} of rank 1 at after_backward of step 3"
    assert ended(reach, tmp_path, planned, FaultPoint.after_backward, 3, 1) == 0, "it struck twice"


def test_a_stopped_process_does_not_go_on(tmp_path) -> None:
    process = FORK.Process(target=reach, args=(tmp_path, fault(FaultKind.sigstop), FaultPoint.after_backward, 3, 1))
    process.start()
    _, status = os.waitpid(process.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    os.kill(process.pid, signal.SIGKILL)
    os.waitpid(process.pid, 0)


@pytest.mark.parametrize(("kind", "error"), [(FaultKind.exception, RuntimeError), (FaultKind.oom, MemoryError)])
def test_an_error_says_that_it_was_planned(kind, error, tmp_path) -> None:
    with pytest.raises(error, match="planned fault"):
        injector(tmp_path, fault(kind)).reached(FaultPoint.after_backward, 3)
    assert len(FaultRecord(tmp_path).fired()) == 1


@pytest.mark.parametrize(
    ("kind", "point", "settled"),
    [
        (FaultKind.sigkill, FaultPoint.after_forward, 3),
        (FaultKind.sigterm, FaultPoint.after_forward, 3),
        (FaultKind.sigterm, FaultPoint.writing, 4),
        (FaultKind.sigint, FaultPoint.before_commit, 4),
        (FaultKind.sigkill, FaultPoint.writing, None),
        (FaultKind.sigkill, FaultPoint.loading, None),
    ],
)
def test_a_save_in_flight_is_awaited_where_the_fault_would_depend_on_it(kind, point, settled, tmp_path) -> None:
    planned = fault(kind, point, step=None if point is FaultPoint.loading else 3)
    assert [step for step in range(1, 6) if injector(tmp_path, planned, rank=0).settles_before(step)] == (
        [] if settled is None else [settled]
    )


def test_a_cut_record_counts_as_fired(tmp_path) -> None:
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults/00004.rank_00002.json").write_text('{"ki')
    (fired,) = FaultRecord(tmp_path).fired()
    assert (fired.index, fired.rank) == (4, 2)


def state(torch):
    return {f"leaf_{i}": torch.full((64, 64), float(i)) for i in range(8)}


def save(folder: Path, planned: PlannedFault) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    root = with_faults(locate(folder), injector(folder / "run", planned, rank=0))
    dcp.save(state(torch), storage_writer=ShardWriter(root.child("step_00000003")), no_dist=True)


def storage_fault(kind: FaultKind, **changes) -> PlannedFault:
    return fault(kind, FaultPoint.writing, ranks=(0,), **changes)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
@pytest.mark.parametrize("kind", [FaultKind.bit_flip, FaultKind.torn_write])
def test_damaged_bytes_are_noticed_by_the_load(kind, share, tmp_path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    save(tmp_path, storage_fault(kind, share=share))
    assert len(FaultRecord(tmp_path / "run").fired()) == 1
    folder = tmp_path / "step_00000003"
    if kind is FaultKind.torn_write and share == 1.0:
        # Nothing is torn when all bytes have arrived.
        return
    with pytest.raises(dcp.api.CheckpointException) as caught:
        dcp.load(state(torch), storage_reader=ShardReader(folder), no_dist=True)
    assert isinstance(next(iter(caught.value.failures.values()))[0], CheckpointDamagedError)


@pytest.mark.parametrize(("kind", "number"), [(FaultKind.disk_full, 28), (FaultKind.io_error, 5)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_failing_disk_fails_the_save_and_leaves_nothing_committed(kind, number, share, tmp_path) -> None:
    import torch.distributed.checkpoint as dcp

    with pytest.raises(dcp.api.CheckpointException) as caught:
        save(tmp_path, storage_fault(kind, share=share))
    error = next(iter(caught.value.failures.values()))[0]
    assert isinstance(error, OSError)
    assert error.errno == number
    assert not (tmp_path / "step_00000003").exists()


def test_slow_storage_changes_no_byte(tmp_path) -> None:
    import torch
    import torch.distributed.checkpoint as dcp

    save(tmp_path, storage_fault(FaultKind.slow_storage, seconds=0.01))
    loaded = {name: torch.zeros_like(value) for name, value in state(torch).items()}
    dcp.load(loaded, storage_reader=ShardReader(tmp_path / "step_00000003"), no_dist=True)
    assert all(torch.equal(loaded[name], value) for name, value in state(torch).items())
    assert len(FaultRecord(tmp_path / "run").fired()) == 1


def save_and_die(folder: Path, planned: PlannedFault) -> None:
    save(folder, planned)
    os._exit(0)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_kill_while_writing_leaves_a_part_of_the_bytes_and_no_checkpoint(share, tmp_path) -> None:
    assert ended(save_and_die, tmp_path, storage_fault(FaultKind.sigkill, share=share)) == -signal.SIGKILL
    assert not (tmp_path / "step_00000003").exists()
    (working,) = [path for path in tmp_path.iterdir() if path.name.startswith("step_00000003.tmp-") and path.is_dir()]
    (file,) = working.glob("*.safetensors")
    written = file.read_bytes().rstrip(b"\0")
    whole = 8 * 64 * 64 * 4
    if share == 0.0:
        assert written == b""
    elif share == 0.5:
        assert 0.3 * whole < len(written) < 0.7 * whole
    else:
        assert len(written) > 0.9 * whole


@pytest.mark.parametrize("kind", [FaultKind.none, FaultKind.chaos, FaultKind.bit_flip, FaultKind.disk_full])
def test_what_strikes_no_process_is_an_error_and_no_kill(kind: FaultKind, tmp_path: Path) -> None:
    with pytest.raises(InternalError, match=kind.value):
        injector(tmp_path, fault(kind)).reached(FaultPoint.after_backward, 3)
