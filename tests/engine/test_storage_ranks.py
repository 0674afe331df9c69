"""Several ranks write one checkpoint, and any other number of ranks in any other layout reads the same bits."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, StateDictType, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor._shards_wrapper import LocalShardsWrapper
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from ckptrun.engine.commit import list_committed, list_leftovers, remove_leftovers
from ckptrun.engine.manifest import read_manifest
from ckptrun.engine.read_state import read_state
from ckptrun.engine.storage import ShardReader, ShardWriter
from ckptrun.errors import CheckpointExistsError, StateMismatchError, UnsupportedLeafError
from tests.support.bits import all_bits, bits, random_tensor
from tests.support.run_ranks import run_ranks
from tests.support.storage_backends import CountingBackend, FaultyBackend, on

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]


class Model(nn.Module):
    """Two linear layers of sizes that do not divide evenly, a norm with buffers, and a parameter of one row."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 7)
        self.norm = nn.BatchNorm1d(7)
        self.row = nn.Parameter(torch.zeros(1, 5))


def truth() -> dict[str, Tensor]:
    """The full tensors, the same on every rank and in every test."""
    return {
        name: random_tensor(value.dtype, tuple(value.shape), seed=index)
        for index, (name, value) in enumerate(Model().state_dict().items())
    }


def build(layout: str) -> nn.Module:
    """A model in a layout, with the true values."""
    model, world = Model(), dist.get_world_size()
    model.load_state_dict(truth())
    if layout == "ddp":
        return model
    if layout == "fsdp":
        return fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    if layout == "hsdp":
        return fully_shard(model, mesh=init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard")))
    if layout == "tp":
        return tensor_parallel(model, init_device_mesh("cpu", (world,)))
    if layout == "fsdp_tp":
        mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("shard", "tensor"))
        return fully_shard(tensor_parallel(model, mesh["tensor"]), mesh=mesh["shard"])
    mesh = init_device_mesh("cpu", (world,)) if layout == "fsdp1_mesh" else None
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), device_mesh=mesh, use_orig_params=True)


def tensor_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return parallelize_module(model, mesh, {"up": ColwiseParallel(), "down": RowwiseParallel()})


def state_of(model: nn.Module) -> dict[str, Any]:
    if isinstance(model, FullyShardedDataParallel):
        with FullyShardedDataParallel.state_dict_type(model, StateDictType.SHARDED_STATE_DICT):
            return {"model": model.state_dict()}
    return {"model": model.state_dict()}


def zero(state: dict[str, Any]) -> None:
    with torch.no_grad():
        for value in state["model"].values():
            for part in local_parts(value):
                part.zero_()


def local_parts(value: Any) -> list[Tensor]:
    if hasattr(value, "local_shards"):
        return [shard.tensor for shard in value.local_shards()]
    return [value.to_local() if isinstance(value, DTensor) else value]


LAYOUTS = ["ddp", "fsdp", "hsdp", "tp", "fsdp_tp", "fsdp1", "fsdp1_mesh"]
LAYOUTS_OF_2 = ["ddp", "fsdp", "tp", "fsdp_tp", "fsdp1"]


def save_layouts(folder: Path, layouts: list[str]) -> None:
    for layout in layouts:
        dcp.save(state_of(build(layout)), storage_writer=ShardWriter(folder / layout, run={"layout": layout}))


def load_layouts(folder: Path, saved: list[str], layouts: list[str]) -> list[str]:
    """Load each checkpoint into each layout; return those that are not the truth on this rank."""
    wrong = []
    for layout in layouts:
        state = state_of(build(layout))
        expected = {name: [bits(part) for part in local_parts(value)] for name, value in state["model"].items()}
        for source in saved:
            zero(state)
            dcp.load(state, storage_reader=ShardReader(folder / source))
            found = {name: [bits(part) for part in local_parts(value)] for name, value in state["model"].items()}
            wrong += [f"{source} -> {layout}: {name}" for name in expected if found[name] != expected[name]]
    return wrong


@pytest.fixture(scope="module")
def saved_by_4(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved_by_4")
    run_ranks(save_layouts, 4, folder, LAYOUTS)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_read_back_in_full(layout: str, saved_by_4: Path) -> None:
    assert all_bits(read_state(saved_by_4 / layout)["model"]) == all_bits(truth())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_torchs_own_reader_loads_every_layout_from_the_folder(layout: str, saved_by_4: Path) -> None:
    into = {"model": {name: torch.zeros_like(value) for name, value in truth().items()}}
    dcp.load(into, storage_reader=HuggingFaceStorageReader(str(saved_by_4 / layout)), no_dist=True)
    assert all_bits(into["model"]) == all_bits(truth())


def test_every_layout_of_4_ranks_loads_into_every_layout_of_2(saved_by_4: Path) -> None:
    assert run_ranks(load_layouts, 2, saved_by_4, LAYOUTS, LAYOUTS_OF_2) == [[], []]


def test_every_layout_of_4_ranks_loads_into_those_that_need_4(saved_by_4: Path) -> None:
    assert run_ranks(load_layouts, 4, saved_by_4, LAYOUTS, ["hsdp", "fsdp_tp", "fsdp"]) == [[]] * 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_is_stored_once_and_by_no_rank_alone(layout: str, saved_by_4: Path) -> None:
    manifest = read_manifest(saved_by_4 / layout)
    needed = sum(value.numel() * value.element_size() for value in truth().values())
    written = {name: file.bytes - file.header_bytes for name, file in manifest.files.items()}
    assert sum(written.values()) == needed
    assert len(written) == 4
    assert max(written.values()) < 0.6 * needed


SHAPES = [(), (0,), (0, 3), (1,), (3,), (5, 1), (7, 6), (2, 3, 4)]


def distributed_tensors(mesh: DeviceMesh, *, zeros: bool) -> dict[str, Any]:
    """Every shape in every placement that it can have on a mesh of two axes."""
    placements = [[Replicate(), Replicate()], [Shard(0), Replicate()], [Replicate(), Shard(0)], [Shard(0), Shard(0)]]
    placements += [[Shard(1), Replicate()], [Shard(0), Shard(1)], [Shard(1), Shard(0)]]
    found = {}
    for shape in SHAPES:
        for number, placement in enumerate(placements):
            if any(isinstance(kind, Shard) and kind.dim >= len(shape) for kind in placement):
                continue
            full = torch.zeros(shape) if zeros else random_tensor(torch.float32, shape, seed=number)
            found[f"{shape}/{number}"] = distribute_tensor(full, mesh, placement)
    return found


def save_and_load_uneven(folder: Path) -> list[str]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
    saved, loaded = distributed_tensors(mesh, zeros=False), distributed_tensors(mesh, zeros=True)
    dcp.save(saved, storage_writer=ShardWriter(folder))
    dcp.load(loaded, storage_reader=ShardReader(folder))
    return [name for name in saved if bits(saved[name].to_local()) != bits(loaded[name].to_local())]


def test_uneven_and_empty_shards_come_back_on_every_rank(tmp_path: Path) -> None:
    assert run_ranks(save_and_load_uneven, 4, tmp_path / "c") == [[]] * 4
    for name, tensor in read_state(tmp_path / "c").items():
        shape, number = name.split("/")
        assert bits(tensor) == bits(random_tensor(torch.float32, eval(shape), seed=int(number))), name


def save_what_differs_by_rank(folder: Path) -> bool:
    """Experts on some ranks only, per-rank leaves, and keys in another order on each rank."""
    rank = dist.get_rank()
    mesh, expert = init_device_mesh("cpu", (2, 2), mesh_dim_names=("expert", "shard")), rank // 2
    state: dict[str, Any] = {
        f"expert_{expert}": distribute_tensor(torch.full((4, 2), float(expert)), mesh["shard"], [Shard(0)]),
        "common": torch.arange(6.0),
        "step": 3,
        f"rank_{rank:05d}": {"rng": torch.full((3,), rank), "draws": [rank, float(rank)]},
    }
    if rank == 2:
        state["only_here"] = "x"
    state = dict(sorted(state.items(), key=lambda item: hash((item[0], rank)) if rank else 0))
    dcp.save(state, storage_writer=ShardWriter(folder))
    wanted = all_bits(state)
    for value in state.values():
        if isinstance(value, Tensor):
            local_parts(value)[0].zero_()
    state["step"], state[f"rank_{rank:05d}"] = 0, {"rng": torch.zeros(3, dtype=torch.int64), "draws": []}
    state = dict(reversed(list(state.items()))) if rank % 2 else state
    dcp.load(state, storage_reader=ShardReader(folder))
    return all_bits(state) == wanted


def test_what_only_some_ranks_have_is_saved_and_loaded_whatever_the_order_of_keys(tmp_path: Path) -> None:
    assert run_ranks(save_what_differs_by_rank, 4, tmp_path / "c") == [True] * 4
    found = read_state(tmp_path / "c")
    assert [found[f"rank_{rank:05d}"]["draws"] for rank in range(4)] == [[rank, float(rank)] for rank in range(4)]
    assert (found["expert_0"].unique().tolist(), found["expert_1"].unique().tolist()) == ([0.0], [1.0])
    assert found["only_here"] == "x"


def fail_on_one_rank(folder: Path) -> list[tuple[str, list[int]]]:
    """What each rank sees of each failing save: the kind of error, and the ranks it came from."""
    rank = dist.get_rank()
    state: dict[str, Any] = {"w": torch.full((4,), float(rank)), f"own_{rank}": torch.ones(3)}
    good = {"w": torch.ones(4)}
    dcp.save(good, storage_writer=ShardWriter(folder / "step_00000001"))
    bad = {**state, "bad": {"leaf": object() if rank == 1 else 3}}
    sparse = {**state, "sparse": torch.eye(2).to_sparse() if rank == 1 else torch.eye(2)}
    attempts = [
        (state, on(FaultyBackend("rank_00001"), folder / "step_00000002")),
        (bad, folder / "step_00000003"),
        (sparse, folder / "step_00000004"),
        (state, folder / "step_00000001"),
        ({**state, "bad": object()}, folder / "step_00000007"),
        (good, folder / "step_00000005"),
        (state, on(FaultyBackend("manifest"), folder / "step_00000006")),
    ]
    seen = []
    for live, url in attempts:
        try:
            dcp.save(live, storage_writer=ShardWriter(url))
        except CheckpointException as error:
            kinds = {type(cause).__name__ for cause, _ in error.failures.values()}
            seen.append(("/".join(sorted(kinds)), sorted(error.failures)))
    return seen


def test_a_failure_on_one_rank_fails_the_save_on_all_and_harms_no_checkpoint(tmp_path: Path) -> None:
    expected = [
        (OSError.__name__, [1]),
        (UnsupportedLeafError.__name__, [1]),
        (UnsupportedLeafError.__name__, [1]),
        (CheckpointExistsError.__name__, [0]),
        (UnsupportedLeafError.__name__, [0, 1]),
        (OSError.__name__, [0]),
    ]
    assert run_ranks(fail_on_one_rank, 2, tmp_path) == [expected] * 2
    assert list_committed(tmp_path) == [1, 5]
    assert all_bits(read_state(tmp_path / "step_00000001")) == all_bits({"w": torch.ones(4)})
    leftovers = list_leftovers(tmp_path)
    # Step 3: rank 0 could not know, and wrote its own part. Steps 4 and 7: refused before a byte was written.
    assert {name.partition(".")[0] for name in leftovers} == {"step_00000002", "step_00000003", "step_00000006"}
    assert remove_leftovers(tmp_path) == leftovers
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001", "step_00000005"]


def save_with_digests(folder: Path) -> str:
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    state = {"w": distribute_tensor(torch.arange(4.0), mesh, [Shard(0)]), f"rank_{rank}": torch.ones(1)}
    own = f"rank_{rank}"
    writer = ShardWriter(folder / "good", digests={"w": "ab", own: f"0{rank}"}, paths={own: ("own", rank)})
    dcp.save(state, storage_writer=writer)
    try:
        dcp.save(state, storage_writer=ShardWriter(folder / "bad", digests={"w": f"0{rank}"}))
    except CheckpointException as error:
        return str(error.failures[0][0])
    return ""


def test_digests_of_all_ranks_are_kept_and_may_not_contradict_each_other(tmp_path: Path) -> None:
    for message in run_ranks(save_with_digests, 2, tmp_path):
        assert "'w' is not the same on all ranks" in message
        assert "00" in message
        assert "01" in message
    leaves = read_manifest(tmp_path / "good").leaves
    assert {name: leaf.digest for name, leaf in leaves.items()} == {"w": "ab", "rank_0": "00", "rank_1": "01"}
    assert [leaves[f"rank_{rank}"].path for rank in range(2)] == [("own", 0), ("own", 1)]
    assert not (tmp_path / "bad").exists()


def load_mismatch(folder: Path) -> list[Any]:
    rank = dist.get_rank()
    dcp.save({"w": torch.ones(4)}, storage_writer=ShardWriter(folder))
    try:
        dcp.load(
            {"w": torch.zeros(4, dtype=torch.float16 if rank else torch.float32)}, storage_reader=ShardReader(folder)
        )
    except CheckpointException as error:
        return [(rank, type(cause), cause.leaves) for rank, (cause, _) in error.failures.items()]
    return []


def test_another_dtype_on_one_rank_is_an_error_on_all(tmp_path: Path) -> None:
    assert run_ranks(load_mismatch, 2, tmp_path / "c") == [[(1, StateMismatchError, ("w",))]] * 2


def save_large(folder: Path, rows: int) -> None:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    full = torch.arange(rows * 512, dtype=torch.float32).view(rows, 512)
    dcp.save({"w": distribute_tensor(full, mesh, [Shard(0)])}, storage_writer=ShardWriter(folder))


def load_large(folder: Path, rows: int) -> tuple[float, bool]:
    """How much is read for each byte that is needed, and whether it is right."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    full = torch.arange(rows * 512, dtype=torch.float32).view(rows, 512)
    state = {"w": distribute_tensor(torch.zeros(rows, 512), mesh, [Shard(0)])}
    backend = CountingBackend()
    dcp.load(state, storage_reader=ShardReader(on(backend, folder)))
    expected = distribute_tensor(full, mesh, [Shard(0)]).to_local()
    local = state["w"].to_local()
    return backend.bytes_read / (local.numel() * 4), bits(local) == bits(expected)


@pytest.mark.parametrize(("savers", "loaders"), [(2, 3), (3, 2)])
def test_a_rank_reads_little_more_than_it_needs(savers: int, loaders: int, tmp_path: Path) -> None:
    rows = 4100
    run_ranks(save_large, savers, tmp_path / "c", rows)
    for ratio, is_right in run_ranks(load_large, loaders, tmp_path / "c", rows):
        assert is_right
        assert ratio < 1.05


def save_several_chunks(folder: Path) -> None:
    """One rank holds two pieces of one tensor that do not touch."""
    full = torch.arange(24.0).view(6, 4)
    mesh = init_device_mesh("cpu", (1,))
    wrapper = LocalShardsWrapper([full[:, :1].contiguous(), full[:, 1:].contiguous()], [(0, 0), (0, 1)])
    wrapper._storage_meta = dataclasses.replace(wrapper.storage_metadata(), size=full.size())
    tensor = DTensor.from_local(wrapper, mesh, [Replicate()], run_check=False)
    dcp.save({"w": tensor, "other": torch.ones(2)}, storage_writer=ShardWriter(folder))


def test_several_chunks_of_a_leaf_on_one_rank_go_to_several_files(tmp_path: Path) -> None:
    run_ranks(save_several_chunks, 1, tmp_path / "c")
    assert sorted(read_manifest(tmp_path / "c").files) == ["rank_00000-00001.safetensors", "rank_00000.safetensors"]
    expected = {"w": torch.arange(24.0).view(6, 4), "other": torch.ones(2)}
    assert all_bits(read_state(tmp_path / "c")) == all_bits(expected)
    into = {name: torch.zeros_like(value) for name, value in expected.items()}
    dcp.load(into, storage_reader=HuggingFaceStorageReader(str(tmp_path / "c")), no_dist=True)
    assert all_bits(into) == all_bits(expected)


def save_alone(folder: Path) -> list[str]:
    """Each rank saves its own part without the others, as for a checkpoint on its own disk."""
    rank, mesh = dist.get_rank(), init_device_mesh("cpu", (2,))
    url = folder / f"of_rank_{rank}"
    live = distribute_tensor(torch.arange(4.0), mesh, [Shard(0)])
    dcp.save({"w": live}, storage_writer=ShardWriter(url), no_dist=True)
    into = distribute_tensor(torch.zeros(4), mesh, [Shard(0)])
    dcp.load({"w": into}, storage_reader=ShardReader(url), no_dist=True)
    outcome = [str(bits(into.to_local()) == bits(live.to_local()))]
    try:
        dcp.load({"w": torch.zeros(4)}, storage_reader=ShardReader(url), no_dist=True)
    except CheckpointException as error:
        outcome.append(str(error.failures[0][0]))
    return outcome


def test_part_of_a_leaf_is_never_taken_for_all_of_it(tmp_path: Path) -> None:
    for same, message in run_ranks(save_alone, 2, tmp_path):
        assert same == "True"
        assert "Only part of leaf 'w'" in message
        assert "4 elements, of which 2 are there" in message
    with pytest.raises(StateMismatchError, match="'w' is only partly in"):
        read_state(tmp_path / "of_rank_0")


def save_to_object_store(url: str) -> list[bool]:
    """Local files behind fsspec, which are then taken for an object store: nothing is renamed."""
    mesh = init_device_mesh("cpu", (2,))
    found = []
    for value in (1.0, 2.0):
        state = {"w": distribute_tensor(torch.full((5, 2), value), mesh, [Shard(0)]), "n": value}
        dcp.save(state, storage_writer=ShardWriter(url, overwrite=True))
        into = {"w": distribute_tensor(torch.zeros(5, 2), mesh, [Shard(0)]), "n": None}
        dcp.load(into, storage_reader=ShardReader(url))
        found.append(all_bits(into) == all_bits(state))
    return found


def test_on_an_object_store_the_files_of_a_save_are_its_own(tmp_path: Path) -> None:
    url = f"local://{tmp_path}/step_00000001"
    assert run_ranks(save_to_object_store, 2, url) == [[True, True]] * 2
    manifest = read_manifest(url)
    assert all(manifest.save_id in name for name in manifest.files)
    assert sorted(path.name for path in (tmp_path / "step_00000001").iterdir()) == [
        "manifest.json",
        *sorted(manifest.files),
    ]


class FailsBetweenPlanAndWrite(DefaultSavePlanner):
    def finish_plan(self, new_plan: Any) -> Any:
        raise RuntimeError("no plan")


def save_after_a_save_that_was_only_planned(folder: Path) -> list[int]:
    with contextlib.suppress(CheckpointException):
        planner = FailsBetweenPlanAndWrite()
        dcp.save({"n": torch.ones(1)}, storage_writer=ShardWriter(folder / "step_00000001"), planner=planner)
    dcp.save({"n": torch.ones(1)}, storage_writer=ShardWriter(folder / "step_00000002"), no_dist=True)
    return list_committed(folder)


def test_a_save_that_was_only_planned_leaves_nothing_to_the_next(tmp_path: Path) -> None:
    assert run_ranks(save_after_a_save_that_was_only_planned, 1, tmp_path) == [[2]]


def load_nothing(folder: Path) -> str:
    try:
        dcp.load({"w": torch.ones(1)}, storage_reader=ShardReader(folder))
    except CheckpointException as error:
        return ",".join(type(cause).__name__ for cause, _ in error.failures.values())
    return ""


def test_a_missing_checkpoint_is_the_same_error_on_every_rank(tmp_path: Path) -> None:
    names = "CheckpointNotFoundError,CheckpointNotFoundError"
    assert run_ranks(load_nothing, 2, tmp_path / "nowhere") == [names] * 2
