"""Checkpoints on a real S3 server: bit for bit, through faults, and without anything left behind."""

import errno
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from s3fs import S3FileSystem
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, zeros
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.commit import (
    hold_save,
    list_committed,
    list_in_flight,
    list_leftovers,
    remove_checkpoint,
    remove_leftovers,
)
from ckptrun.engine.layout import new_save_id, shard_file_name, step_folder
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import read_manifest
from ckptrun.engine.read_state import read_state
from ckptrun.engine.staging import HostStager
from ckptrun.engine.storage import ShardReader, ShardWriter
from ckptrun.errors import ShardFileError
from tests.support.bits import all_bits, random_tensor
from tests.support.flaky_proxy import FAULTS, FlakyProxy, each, every
from tests.support.killed_ranks import run_until_killed
from tests.support.object_store import MIB, empty, large_state, random_bytes, s3_backend, through
from tests.support.run_ranks import run_ranks
from tests.support.s3_server import S3Server, environment
from tests.support.storage_backends import KillAt
from tests.support.through_dcp import failed, load, save

pytestmark = [
    pytest.mark.usefixtures("here"),
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]

FIRST, LATER = step_folder("run", 1), step_folder("run", 2)


# Checkpoints


def test_a_checkpoint_comes_back_bit_for_bit_and_is_listed_and_removed(url: str, server: S3Server, bucket: str) -> None:
    seen: dict[str, Any] = {}

    def reached(point: str) -> None:
        seen[point] = (list_committed(url), sorted(server.objects(bucket)), list_leftovers(url), list_in_flight(url))

    save(large_state(1), f"{url}/{FIRST[4:]}", reached=reached, run={"step": 1})
    save(large_state(2), f"{url}/{LATER[4:]}")
    for value, folder in ((1, FIRST), (2, LATER)):
        into = empty(large_state(value))
        load(into, f"s3://{bucket}/{folder}")
        assert all_bits(into) == all_bits(large_state(value))
    manifest = read_manifest(f"s3://{bucket}/{FIRST}")
    (name,) = manifest.files
    assert (manifest.run, name) == ({"step": 1}, shard_file_name(0, save_id=manifest.save_id))
    for point in ("writing", "before_commit"):
        committed, objects, leftovers, in_flight = seen[point]
        assert (committed, leftovers) == ([], [])
        assert set(in_flight) == {f"step_00000001/{name}", f"step_00000001/{manifest.save_id}.lock"}
        assert not any(key.endswith("manifest.json") for key in objects)
    assert list_committed(url) == [1, 2]
    remove_checkpoint(url, 1)
    assert list_committed(url) == [2]
    assert sorted(key.partition("/")[2] for key in server.objects(bucket)) == [
        "step_00000002/manifest.json",
        f"step_00000002/{next(iter(read_manifest(f's3://{bucket}/{LATER}').files))}",
    ]


class ReaderOfOld(ShardReader):
    """Reads the manifest, then waits for a re-save, then the data."""

    between: Any = None

    def read_data(self, *args: Any) -> Any:
        self.between()
        return super().read_data(*args)


def test_an_old_reader_gets_the_old_bits_or_an_error_while_a_save_replaces_them(url: str, bucket: str) -> None:
    target = f"s3://{bucket}/{FIRST}"
    save(large_state(1), target)
    folder, files = locate(target), read_manifest(target).files
    (name,) = files
    reader = folder.backend.open(folder.child(name).path)
    into, old = empty(large_state(1)), ReaderOfOld(target)
    old.between = lambda: save(large_state(2), target, overwrite=True)
    with pytest.raises(CheckpointException) as error:
        dcp.load(into, storage_reader=old, no_dist=True)
    assert isinstance(error.value.failures[0][0], ShardFileError)
    assert "is missing" in str(error.value.failures[0][0])
    with pytest.raises(FileNotFoundError):
        reader.read(0, [memoryview(bytearray(100))])
    load(into, target)
    assert all_bits(into) == all_bits(large_state(2))
    assert len(folder.backend.list_names(folder.path)) == 2


def test_a_commit_whose_answer_never_comes_fails_and_is_whole(proxy: FlakyProxy, url: str, bucket: str) -> None:
    """Nobody can know; so what is there must be good."""
    proxy.plan = each("lost_answer", "PUT", "manifest.json")
    error = failed(save, large_state(1), through(proxy.endpoint, f"{bucket}/{FIRST}"))
    assert isinstance(error, OSError)
    assert "gave up after 5 tries" in str(error)
    assert list_committed(url) == [1]
    into = empty(large_state(1))
    load(into, f"s3://{bucket}/{FIRST}")
    assert all_bits(into) == all_bits(large_state(1))


def test_leftovers_of_a_dead_save_are_listed_and_removed_with_their_parts(
    url: str, server: S3Server, bucket: str
) -> None:
    """An upload is all that there is of it: no object shows its folder."""
    save(large_state(1), f"s3://{bucket}/{FIRST}")
    save_id = new_save_id()
    target = locate(f"s3://{bucket}/{LATER}")
    file, manifest = target.child(shard_file_name(3, save_id=save_id)), target.child("manifest.json")
    for place in (file, manifest):
        writer = place.backend.create(place.path, 20 * MIB)
        writer.write(0, memoryview(random_bytes(16 * MIB)))
    assert list_committed(url) == [1]
    assert list_leftovers(url) == [f"step_00000002/{file.name}"]
    release = hold_save(target, save_id)
    assert list_leftovers(url) == []
    release()
    assert remove_leftovers(url) == [f"step_00000002/{file.name}"]
    # That of a manifest says nothing of the save that it is of; it goes with its folder.
    assert server.uploads(bucket) == [f"{LATER}/manifest.json"]
    target.backend.remove(target.path)
    assert server.uploads(bucket) == []
    assert list_committed(url) == [1]


def test_memory_of_a_process_holds_checkpoints(tmp_path: Path) -> None:
    root = f"memory://{tmp_path.name}"
    for value in (1, 2):
        save(large_state(value), step_folder(root, 1), overwrite=True)
        into = empty(large_state(value))
        load(into, step_folder(root, 1))
        assert all_bits(into) == all_bits(large_state(value))
    file = locate(root).child("f")
    writer = file.backend.create(file.path, 20 * MIB)
    writer.write(0, memoryview(random_bytes(16 * MIB)))
    writer.abort()
    assert file.backend.list_names(locate(root).path) == ["step_00000001"]
    assert list_leftovers(root) == []


# Ranks


def sharded(dtype: torch.dtype, shape: tuple[int, ...], value: int) -> DTensor:
    """The same full tensor on any number of ranks, of which a rank makes its own rows only."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    tensor = zeros(shape, dtype=dtype, device_mesh=mesh, placements=[Shard(0)])
    _, offsets = compute_local_shape_and_global_offset(shape, mesh, [Shard(0)])
    for number, row in enumerate(tensor.to_local(), start=offsets[0]):
        row.copy_(random_tensor(dtype, shape[1:], seed=1000 * value + number))
    return tensor


def sharded_state(value: int) -> dict[str, Any]:
    """Enough for an upload on each of four ranks, in parts on two; uneven, replicated and plain beside it."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        "large": sharded(torch.float32, (37, MIB // 4), value),
        "uneven": sharded(torch.bfloat16, (5, 3), value),
        "replicated": distribute_tensor(random_tensor(torch.int32, (9,), seed=value), mesh, [Replicate()]),
        "value": value,
    }


def whole(value: int) -> dict[str, Any]:
    """The same without ranks."""
    rows = {"large": (torch.float32, (37, MIB // 4)), "uneven": (torch.bfloat16, (5, 3))}
    tensors = {
        name: torch.stack([random_tensor(dtype, shape[1:], seed=1000 * value + row) for row in range(shape[0])])
        for name, (dtype, shape) in rows.items()
    }
    return {**tensors, "replicated": random_tensor(torch.int32, (9,), seed=value), "value": value}


def holds(url: str, value: int) -> bool:
    """Whether the checkpoint in ``url`` is that of ``sharded_state(value)``, read by this process alone."""
    return bool(all_bits(read_state(url)) == all_bits(whole(value)))


def emptied(value: int) -> dict[str, Any]:
    state = sharded_state(value)
    for tensor in state.values():
        if isinstance(tensor, DTensor):
            tensor.to_local().zero_()
    return {**state, "value": -1}


def loads(url: Any, value: int) -> bool:
    into = emptied(value)
    dcp.load(into, storage_reader=ShardReader(url))
    return all_bits(into) == all_bits(sharded_state(value))


def save_and_load(settings: dict[str, str], root: str) -> list[bool]:
    os.environ.update(settings)
    dcp.save(sharded_state(1), storage_writer=ShardWriter(step_folder(root, 1)))
    stager = HostStager()
    dcp.async_save(sharded_state(2), storage_writer=ShardWriter(step_folder(root, 2)), async_stager=stager).result()
    stager.close()
    return [loads(step_folder(root, 1), 1), loads(step_folder(root, 2), 2)]


@pytest.mark.distributed
def test_four_ranks_save_and_load_and_one_process_reads_all(url: str, server: S3Server, bucket: str) -> None:
    assert run_ranks(save_and_load, 4, environment(server.endpoint), url) == [[True, True]] * 4
    assert [holds(step_folder(url, step), step) for step in (1, 2)] == [True, True]
    assert list_committed(url) == [1, 2]
    assert list_leftovers(url) == []
    assert server.uploads(bucket) == []
    assert len(server.objects(bucket)) == 2 * 5


def save_in_a_process(settings: dict[str, str], root: str) -> bool:
    os.environ.update(settings, MASTER_ADDR="localhost")
    writer = ShardWriter(Location(s3_backend(S3FileSystem()), step_folder(root, 1)))
    state = sharded_state(1)
    dcp.async_save(
        state,
        storage_writer=writer,
        async_stager=HostStager(),
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
        process_group=dist.new_group(backend="gloo"),
    ).result(60)
    return loads(f"s3://{root}/step_00000001", 1)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_process_of_its_own_saves(server: S3Server, bucket: str) -> None:
    assert run_ranks(save_in_a_process, 2, environment(server.endpoint), f"{bucket}/run", fresh=True) == [True, True]


def save_and_die(settings: dict[str, str], root: str) -> None:
    """Rank 1 dies in the second save, with an upload of its own on the server."""
    os.environ.update(settings)
    dcp.save(sharded_state(1), storage_writer=ShardWriter(step_folder(root, 1)))
    writer = ShardWriter(step_folder(root, 1), overwrite=True, reached=KillAt("writing", 1))
    dcp.save(sharded_state(2), storage_writer=writer)


@pytest.mark.distributed
def test_a_killed_rank_leaves_the_old_checkpoint_and_leftovers_that_go(url: str, server: S3Server, bucket: str) -> None:
    assert run_until_killed(save_and_die, 2, environment(server.endpoint), url)[1] == -9
    old = set(read_manifest(f"{url}/step_00000001").files)
    leftovers = list_leftovers(url)
    killed = f"{new_save_id_in(leftovers)}"
    assert f"step_00000001/{shard_file_name(1, save_id=killed)}" in leftovers
    assert f"step_00000001/{killed}.lock" in leftovers
    assert server.uploads(bucket) != []
    assert holds(step_folder(url, 1), 1)
    assert remove_leftovers(url) == leftovers
    assert list_leftovers(url) == []
    assert server.uploads(bucket) == []
    assert set(server.objects(bucket)) == {f"run/step_00000001/{name}" for name in (*old, "manifest.json")}
    assert holds(step_folder(url, 1), 1)


def new_save_id_in(leftovers: list[str]) -> str:
    (save_id,) = {found[1] for name in leftovers if (found := re.search(r"([0-9a-f]{32})\.", name))}
    return save_id


def save_and_load_through(settings: dict[str, str], root: str) -> bool:
    os.environ.update(settings)
    target = through(settings["AWS_ENDPOINT_URL"], step_folder(root, 1))
    dcp.save(sharded_state(1), storage_writer=ShardWriter(target))
    return loads(target, 1)


@pytest.mark.distributed
def test_ranks_save_and_load_through_faults(proxy: FlakyProxy, url: str, bucket: str) -> None:
    proxy.plan = every(4)
    settings = environment(proxy.endpoint)
    assert run_ranks(save_and_load_through, 2, settings, f"{bucket}/run") == [True, True]
    assert proxy.kinds() == set(FAULTS)
    assert len(proxy.injected) == len(proxy.requests) // 4
    assert list_committed(url) == [1]
    assert list_leftovers(url) == []


def save_in_vain(settings: dict[str, str], root: str) -> tuple[list[str], float, float]:
    os.environ.update(settings)
    target = through(settings["AWS_ENDPOINT_URL"], step_folder(root, 2))
    began = time.monotonic()
    with pytest.raises(CheckpointException) as error:
        dcp.save(sharded_state(2), storage_writer=ShardWriter(target))
    causes = [cause for cause, _ in error.value.failures.values()]
    assert all(isinstance(cause, OSError) and cause.errno == errno.EIO for cause in causes)
    return [str(cause) for cause in causes], time.monotonic() - began


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize(
    ("fault", "method", "part"),
    [("slow_down", "PUT", "partNumber"), ("cut_request", "PUT", "partNumber"), ("internal_error", "PUT", "manifest")],
)
def test_faults_without_end_fail_the_save_on_all_ranks_and_commit_nothing(
    fault: str, method: str, part: str, proxy: FlakyProxy, url: str, server: S3Server, bucket: str
) -> None:
    save(large_state(1), f"{url}/step_00000001")
    proxy.plan = each(fault, method, part)
    for messages, seconds in run_ranks(save_in_vain, 2, environment(proxy.endpoint), f"{bucket}/run"):
        assert messages
        assert all(re.search(rf"gave up after 5 tries.*s3://{bucket}/run/step_00000002/", text) for text in messages)
        assert seconds < 20
    assert len(proxy.injected) >= 5
    assert list_committed(url) == [1]
    assert server.uploads(bucket) == []
    assert all(name.startswith("step_00000002/") for name in remove_leftovers(url))
    into = empty(large_state(1))
    load(into, f"{url}/step_00000001")
    assert all_bits(into) == all_bits(large_state(1))
    assert len(server.objects(bucket)) == 2
