"""Training goes on while a save is in flight, and what is stored is what was live when the save was requested.

Writers wait at a gate until every rank has changed its state in place, so nothing depends on who is faster.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType, AsyncSaveResponse
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard

from ckptrun.engine.backends.interface import write_file
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import step_folder
from ckptrun.engine.read_state import read_state
from ckptrun.engine.staging import HostStager
from ckptrun.engine.storage import ShardReader, ShardWriter
from tests.support.bits import all_bits
from tests.support.run_ranks import run_ranks
from tests.support.storage_backends import FaultyBackend, KillAt, WaitingBackend, on, wait_for

STAGERS: dict[str, dict[str, Any]] = {
    "cached": {},
    "uncached": {"cached": False},
    "overlapped": {"overlapped": True},
    "shared": {"shared": True},
}


class Training:
    """A sharded model with its optimizer, an FSDP1 model beside it, per-rank tensors and plain values."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        torch.manual_seed(1)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3))
        fully_shard(self.model, mesh=mesh)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.1)
        fsdp1 = FullyShardedDataParallel(torch.nn.Linear(3, 5), device_id=torch.device("cpu"))
        self.own = torch.full((4,), float(self.rank))
        # Its tensors are copies of the parameters, so they are changed by hand below.
        with FullyShardedDataParallel.state_dict_type(fsdp1, StateDictType.SHARDED_STATE_DICT):
            self.sharded = fsdp1.state_dict()
        self.step_count = 0

    def step(self) -> None:
        """Change everything in place."""
        self.model(torch.randn(4, 6)).sum().backward()
        self.optimizer.step()
        for value in self.sharded.values():
            value.local_shards()[0].tensor.add_(1)
        self.own += 10
        self.step_count += 1

    def state(self) -> dict[str, Any]:
        moments = {str(index): state for index, state in enumerate(self.optimizer.state.values())}
        return {
            "model": self.model.state_dict(),
            "fsdp1": dict(self.sharded),
            "optimizer": moments,
            "ranks": {f"rank_{self.rank:05d}": {"own": self.own, "count": [self.step_count]}},
            "step": self.step_count,
        }


def bits_of(state: dict[str, Any]) -> Any:
    fsdp1 = {name: [shard.tensor for shard in value.local_shards()] for name, value in state["fsdp1"].items()}
    return all_bits({**state, "model": dict(state["model"]), "fsdp1": fsdp1})


def start_saving(
    training: Training, url: Any, stager: HostStager, reached: Callable[[str], None] = str, **options: Any
) -> Future[Any]:
    """Request a save and wait until it needs the live state no more."""
    writer = ShardWriter(url, reached=reached)
    response = dcp.async_save(training.state(), storage_writer=writer, async_stager=stager, **options)
    if isinstance(response, AsyncSaveResponse):
        stager.wait()
        return response.upload_completion
    return response


def save_while_training(folder: Path, kind: AsyncCheckpointerType) -> dict[str, Any]:
    """Save twice with each stager; say what became of each save, and of those that must fail."""
    os.environ["MASTER_ADDR"] = "localhost"
    training = Training()
    options = {"process_group": dist.new_group(backend="gloo"), "async_checkpointer_type": kind}
    outcome: dict[str, Any] = {}
    for name, arguments in STAGERS.items():
        stager = HostStager(**arguments)
        for attempt in range(2):
            outcome[f"{name} {attempt}"] = save_and_change(training, folder, len(outcome), stager, options)
        stager.close()
    outcome["errors"] = fail_in_background(training, folder, options)
    return outcome


def save_and_change(
    training: Training, folder: Path, step: int, stager: HostStager, options: dict[str, Any]
) -> tuple[bool, bool, bool]:
    """Whether the save was in flight when the state changed, whether it changed, and whether the old one was stored."""
    gate, url = folder / f"gate_{step}", folder / f"step_{step:08d}"
    training.step()
    requested = bits_of(training.state())
    upload = start_saving(training, on(WaitingBackend(gate), url), stager, **options)
    wait_for(gate.with_suffix(".arrived"))
    in_flight = not upload.done()
    training.step()
    changed = bits_of(training.state())
    dist.barrier()
    gate.touch()
    upload.result(60)
    training.step()
    state = training.state()
    dcp.load(state, storage_reader=ShardReader(url), process_group=options["process_group"])
    return in_flight, changed != requested, bits_of(state) == requested


def fail_in_background(training: Training, folder: Path, options: dict[str, Any]) -> list[str]:
    """The disk of rank 1 is full, then it is not, then what writes for rank 1 is killed; return what each save says."""
    stager, errors = HostStager(), []
    attempts: list[tuple[Any, Callable[[str], None]]] = [
        (on(FaultyBackend("rank_00001"), folder / "step_00000100"), str),
        (folder / "step_00000101", str),
    ]
    if options["async_checkpointer_type"] is AsyncCheckpointerType.PROCESS:
        attempts.append((folder / "step_00000102", KillAt("writing", rank=1)))
    for url, reached in attempts:
        upload = start_saving(training, url, stager, reached=reached, **options)
        error = upload.exception(60)
        errors.append("" if error is None else str(error))
    return errors


@pytest.fixture(scope="module", params=["THREAD", "PROCESS"])
def session(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp(request.param.lower())
    return folder, run_ranks(save_while_training, 2, folder, AsyncCheckpointerType[request.param], fresh=True)


@pytest.mark.distributed
def test_a_save_holds_what_was_requested_while_training_went_on(session: tuple[Path, list[Any]]) -> None:
    for outcome in session[1]:
        saves = {name: found for name, found in outcome.items() if name != "errors"}
        assert len(saves) == 2 * len(STAGERS)
        assert {name: found for name, found in saves.items() if found != (True, True, True)} == {}


@pytest.mark.distributed
def test_an_error_in_the_background_reaches_every_rank(session: tuple[Path, list[Any]]) -> None:
    for outcome in session[1]:
        assert "No space left on device" in outcome["errors"][0]
        assert "RANK 1" in outcome["errors"][0]


@pytest.mark.distributed
def test_after_an_error_in_the_background_the_next_save_succeeds(session: tuple[Path, list[Any]]) -> None:
    folder, outcomes = session
    assert [outcome["errors"][1] for outcome in outcomes] == ["", ""]
    assert list_committed(folder) == [*range(8), 101]


@pytest.mark.distributed
@pytest.mark.parametrize("session", ["PROCESS"], indirect=True)
def test_a_killed_saving_process_fails_the_save_on_every_rank(session: tuple[Path, list[Any]]) -> None:
    _, outcomes = session
    assert all(outcome["errors"][2] for outcome in outcomes)
    assert "process is dead" in outcomes[1]["errors"][2]


def two_saves_at_once(folder: Path, options: dict[str, Any]) -> list[Any]:
    """The second save is requested while the first waits at its gate; the first is let through last."""
    training = Training()
    stager = HostStager(**options)
    requested, uploads, gates = [], [], []
    for step in range(2):
        training.step()
        gates.append(folder / f"gate_{step}")
        requested.append(bits_of(training.state()))
        url = on(WaitingBackend(gates[step]), folder / f"step_{step:08d}")
        # A group each: both saves agree between ranks at the same time.
        upload = start_saving(training, url, stager, process_group=dist.new_group(backend="gloo"))
        uploads.append(upload)
        wait_for(gates[step].with_suffix(".arrived"))
    training.step()
    both_in_flight = not any(upload.done() for upload in uploads)
    found = []
    for step in (1, 0):
        dist.barrier()
        gates[step].touch()
        uploads[step].result(60)
    for step in range(2):
        state = training.state()
        dcp.load(state, storage_reader=ShardReader(folder / f"step_{step:08d}"))
        found.append(bits_of(state) == requested[step])
    stager.close()
    return [both_in_flight, requested[0] != requested[1], *found]


@pytest.mark.distributed
@pytest.mark.parametrize("options", [{}, {"overlapped": True}])
def test_two_saves_back_to_back_keep_their_own_values(options: dict[str, Any], tmp_path: Path) -> None:
    assert run_ranks(two_saves_at_once, 2, tmp_path, options) == [[True] * 4] * 2


@pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")
def test_saves_in_flight_without_a_process_group_never_share_memory(tmp_path: Path) -> None:
    gate, stager = tmp_path / "gate", HostStager()
    live = {"w": torch.zeros(1000), "step": [0]}
    uploads = []
    for step in range(3):
        live["w"].fill_(step)
        live["step"][0] = step
        url = on(WaitingBackend(gate), Path(step_folder(tmp_path, step)))
        uploads.append(dcp.async_save(live, storage_writer=ShardWriter(url), async_stager=stager, no_dist=True))
    live["w"].fill_(-1)
    gate.touch()
    for step, upload in enumerate(uploads):
        upload.result(60)
        found = read_state(step_folder(tmp_path, step))
        assert (found["w"].unique().tolist(), found["step"]) == ([step], [step])
    assert len(stager._memory._blocks) == 3
    del uploads, upload
    after = dcp.async_save(live, storage_writer=ShardWriter(tmp_path / "after"), async_stager=stager, no_dist=True)
    after.result(60)
    assert len(stager._memory._blocks) == 3
    stager.close()


def test_a_slow_writer_really_is_in_flight(tmp_path: Path) -> None:
    """The gate that the other tests rely on holds a writer back, and lets it go."""
    backend = WaitingBackend(tmp_path / "gate")
    thread = threading.Thread(target=lambda: write_file(on(backend, tmp_path / "a.safetensors"), b"x"))
    thread.start()
    wait_for(backend.arrived)
    assert not (tmp_path / "a.safetensors").exists()
    (tmp_path / "gate").touch()
    thread.join(60)
    assert (tmp_path / "a.safetensors").read_bytes() == b"x"
