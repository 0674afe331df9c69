"""What was staged never changes again, whatever happens to the live state and to later stagings."""

import pickle
import threading
from concurrent.futures import Future
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import AsyncStager

from ckptrun.engine import staged_state
from ckptrun.engine.host_memory import HostMemory
from ckptrun.engine.staging import HostStager
from ckptrun.engine.storage import ShardWriter
from tests.support.bits import all_bits, bits, random_tensor


def state() -> dict[str, Any]:
    whole = random_tensor(torch.float32, (50, 40))
    return {
        "w": whole.clone(),
        "row": whole[3],
        "transposed": whole.t(),
        "half": random_tensor(torch.bfloat16, (7,)),
        "zero_dim": torch.tensor(3),
        "empty": torch.empty(0, 4),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "nested": [{"step": 4, "betas": (0.9, [1])}, torch.ones(2, dtype=torch.bool)],
        "sparse": torch.eye(3).to_sparse(),
        "object": bytearray(b"x"),
    }


def zero(value: Any) -> None:
    """Change a state in place, as training does."""
    if isinstance(value, torch.Tensor):
        with torch.no_grad():
            (value._values() if value.is_sparse else value).zero_()
    elif isinstance(value, bytearray):
        value.extend(b"more")
    elif isinstance(value, dict):
        for item in value.values():
            zero(item)
        if "step" in value:
            value["step"] = -1
    elif isinstance(value, list | tuple):
        for item in value:
            zero(item)
        if isinstance(value, list) and value == [1]:
            value.append(2)


def dense(value: dict[str, Any]) -> Any:
    return all_bits({**value, "sparse": value["sparse"].to_dense()})


def result(staged: Any) -> Any:
    return staged.result(60) if isinstance(staged, Future) else staged


@pytest.fixture(
    params=[{}, {"cached": False}, {"shared": True}, {"overlapped": True}, {"overlapped": True, "cached": False}]
)
def stager(request: pytest.FixtureRequest) -> Any:
    stager = HostStager(**request.param)
    yield stager
    stager.close()


def test_it_is_a_stager_for_dcp(stager: HostStager) -> None:
    assert isinstance(stager, AsyncStager)


def test_a_staged_state_does_not_follow_the_live_one(stager: HostStager) -> None:
    live = state()
    before = dense(live)
    staged = stager.stage(live)
    stager.wait()
    zero(live)
    assert dense(live) != before
    assert dense(result(staged)) == before


def test_a_second_staging_leaves_the_first_alone(stager: HostStager) -> None:
    live = state()
    before = dense(live)
    first = stager.stage(live)
    stager.wait()
    zero(live)
    second = stager.stage(live)
    stager.wait()
    assert dense(result(first)) == before
    assert dense(result(second)) == dense(live)


def test_a_view_of_a_staged_tensor_is_enough_to_keep_its_memory(stager: HostStager) -> None:
    live = {"w": torch.arange(100.0)}
    kept = result(stager.stage(live))["w"][10:20]
    for _ in range(3):
        live["w"].zero_()
        result(stager.stage(live))
    assert bits(kept) == bits(torch.arange(10.0, 20.0))


@pytest.mark.parametrize("shared", [False, True])
def test_cached_memory_is_used_again_once_nobody_holds_it(shared: bool) -> None:
    stager = HostStager(shared=shared)
    addresses = set()
    for _ in range(4):
        addresses.add(stager.stage({"w": torch.ones(1000)})["w"].data_ptr())
    assert len(addresses) == 1


def test_cached_memory_grows_with_the_state_and_is_not_piled_up() -> None:
    memory = HostMemory(cached=True, shared=False)
    for size in (10, 1000, 100, 5000):
        assert memory.take(size).array.nbytes == size
    assert [block.owner.numel() for block in memory._blocks] == [5000]


def test_tied_tensors_stay_tied_and_others_do_not() -> None:
    weight, flat = torch.ones(4), torch.ones(8)
    staged = HostStager().stage({"a": weight, "b": {"c": weight}, "left": flat[:4], "right": flat[4:]})
    assert staged["a"].data_ptr() == staged["b"]["c"].data_ptr()
    assert len({staged[name].data_ptr() for name in ("a", "left", "right")}) == 3


def test_of_a_view_only_its_own_elements_are_copied() -> None:
    memory_of_rows = HostStager()
    memory_of_rows.stage({"row": torch.ones(1000, 1000)[3], "expanded": torch.ones(1).expand(10, 10)})
    (block,) = memory_of_rows._memory._blocks
    assert block.owner.numel() < 6000


def test_overlapped_staging_returns_before_it_has_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    may_copy = threading.Event()
    real = staged_state.Survey.fill
    monkeypatch.setattr(staged_state.Survey, "fill", lambda *args: (may_copy.wait(60), real(*args))[1])
    live = {"w": torch.ones(3), "plain": [1]}
    stager = HostStager(overlapped=True)
    staged = stager.stage(live)
    assert not staged.done()
    live["plain"].append(2)
    may_copy.set()
    stager.synchronize_staging()
    assert staged.done()
    live["w"].zero_()
    assert (staged.result()["w"].tolist(), staged.result()["plain"]) == ([1, 1, 1], [1])
    stager.close()


def test_an_error_while_copying_is_raised_to_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("no host memory")

    monkeypatch.setattr(staged_state.Survey, "fill", fail)
    stager = HostStager(overlapped=True)
    staged = stager.stage({"w": torch.ones(1)})
    with pytest.raises(MemoryError):
        stager.wait()
    with pytest.raises(MemoryError):
        staged.result()
    stager.close()


def test_staged_tensors_outlive_the_stager() -> None:
    stager = HostStager()
    staged = stager.stage({"w": torch.arange(5.0)})
    stager.close()
    del stager
    assert bits(staged["w"]) == bits(torch.arange(5.0))


@pytest.mark.parametrize("shared", [False, True])
def test_thousands_of_tensors_cross_to_another_process_as_one_piece_of_memory(shared: bool) -> None:
    live = {f"t{index}": torch.full((3,), float(index)) for index in range(5000)}
    live |= {"tied": live["t7"], "nested": [{"x": (1, torch.ones(2))}]}
    staged = HostStager(shared=shared).stage(live)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    raw = ForkingPickler.dumps(staged)
    assert len(list(Path("/proc/self/fd").iterdir())) - opened < 10
    back = pickle.loads(raw)
    assert all_bits(back) == all_bits(live)
    assert back["tied"].data_ptr() == back["t7"].data_ptr()
    assert all_bits(dict(staged)) == all_bits(live)
    staged["t7"].fill_(-1)
    assert (back["t7"][0] == -1) == shared


def test_asynchronous_saving_without_a_cpu_backend_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    """A real group whose only backend is for another device: what a user of NCCL alone has."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("cuda:gloo", store=store, rank=0, world_size=1)
    try:
        stager = HostStager()
        with pytest.raises(AssertionError, match="CPU backend must be enabled"):
            dcp.async_save({"w": torch.ones(1)}, storage_writer=ShardWriter(tmp_path / "c"), async_stager=stager)
        assert stager._memory._blocks == []
        assert not (tmp_path / "c").exists()
    finally:
        dist.destroy_process_group()
