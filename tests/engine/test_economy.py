"""How much a load reads, and how much memory saves and loads take beside the state: counted, not timed."""

import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from ckptrun import ShardReader, ShardWriter
from ckptrun.engine.manifest import read_manifest
from tests.support.bits import bits
from tests.support.run_ranks import run_ranks
from tests.support.storage_backends import CountingBackend, on

pytestmark = pytest.mark.distributed

SHAPES = [(2000, 700), (700, 2000), (4096, 256), (1_500_001,), (50, 30, 400)]


def _state(dim: int) -> dict[str, DTensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        f"w{index}": distribute_tensor(
            torch.arange(torch.tensor(shape).prod()).reshape(shape).float(), mesh, [Shard(min(dim, len(shape) - 1))]
        )
        for index, shape in enumerate(SHAPES)
    }


def _save(folder: Path, dim: int) -> None:
    dcp.save(_state(dim), storage_writer=ShardWriter(folder))


def _load(folder: Path, dim: int) -> tuple[int, int]:
    """Bytes that this rank read of the files, and bytes that it needs."""
    expected = _state(dim)
    state = {name: torch.zeros_like(value) for name, value in expected.items()}
    backend = CountingBackend()
    dcp.load(state, storage_reader=ShardReader(on(backend, folder)))
    assert [bits(value.to_local()) for value in state.values()] == [bits(v.to_local()) for v in expected.values()]
    headers = sum(file.header_bytes for file in read_manifest(folder).files.values())
    return backend.bytes_read - headers, sum(value.to_local().nbytes for value in state.values())


@pytest.mark.parametrize(("saved", "saved_dim", "loaded"), [(2, 0, 3), (1, 0, 4), (2, 1, 3)])
def test_on_another_mesh_a_rank_reads_hardly_more_than_it_needs(
    saved: int, saved_dim: int, loaded: int, tmp_path: Path
) -> None:
    run_ranks(_save, saved, tmp_path / "c", saved_dim)
    for read, needed in run_ranks(_load, loaded, tmp_path / "c", 0):
        assert needed <= read <= 1.05 * needed


def test_columns_cost_whole_rows_once(tmp_path: Path) -> None:
    """A checksum covers whole rows of a narrow matrix: half of its columns cannot be checked without the other half."""
    run_ranks(_save, 1, tmp_path / "c", 0)
    for read, needed in run_ranks(_load, 2, tmp_path / "c", 1):
        assert needed < read <= 2.05 * needed


def _replicated(folder: Path) -> None:
    mesh = init_device_mesh("cpu", (4,))
    state = {f"w{index}": distribute_tensor(torch.ones(1000, 100), mesh, [Replicate()]) for index in range(20)}
    dcp.save(state, storage_writer=ShardWriter(folder))


def test_replicated_leaves_are_written_once_and_spread_over_the_ranks(tmp_path: Path) -> None:
    run_ranks(_replicated, 4, tmp_path / "c")
    sizes = [file.bytes - file.header_bytes for file in read_manifest(tmp_path / "c").files.values()]
    assert sizes == [5 * 400_000] * 4


MIB = 2**20
SIDE = 9_000  # 309 MiB in float32


def _peak_of(prepare: Callable[[], Any], run: Callable[[Any], Any]) -> int:
    """By how much the most memory that the process ever had grows over ``run``."""
    state = prepare()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(state)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024


def _save_contiguous(folder: Path) -> int:
    return _peak_of(
        lambda: {"w": torch.ones(SIDE, SIDE)}, lambda state: save(state, storage_writer=ShardWriter(folder))
    )


def _save_transposed(folder: Path) -> int:
    return _peak_of(
        lambda: {"w": torch.ones(SIDE, SIDE).t()}, lambda state: save(state, storage_writer=ShardWriter(folder))
    )


def _load_same(folder: Path) -> int:
    return _peak_of(
        lambda: {"w": torch.ones(SIDE, SIDE)}, lambda state: dcp.load(state, storage_reader=ShardReader(folder))
    )


def _load_transposed(folder: Path) -> int:
    return _peak_of(
        lambda: {"w": torch.ones(SIDE, SIDE).t()}, lambda state: dcp.load(state, storage_reader=ShardReader(folder))
    )


@pytest.mark.parametrize(("saving", "loading"), [(_save_contiguous, _load_transposed), (_save_transposed, _load_same)])
def test_no_second_copy_of_a_tensor_is_made(saving: Any, loading: Any, tmp_path: Path) -> None:
    assert run_ranks(saving, 1, tmp_path / "c", fresh=True)[0] < 150
    assert run_ranks(loading, 1, tmp_path / "c", fresh=True)[0] < 150
