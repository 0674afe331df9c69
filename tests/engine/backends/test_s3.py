"""Files on a real S3 server: in parts, through faults, and without anything left behind."""

import errno
import multiprocessing
import pickle
import random
import re
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from s3fs import S3FileSystem

from ckptrun.engine.backends.fsspec import FsspecBackend
from ckptrun.engine.backends.interface import Location, read_file, write_file
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import step_folder
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import read_manifest
from ckptrun.errors import CheckpointNotFoundError
from tests.engine.backends.conformance import Promises
from tests.support.flaky_proxy import FAULTS, FlakyProxy, each, every, first
from tests.support.object_store import MIB, random_bytes, s3_backend, seconds_to_fail, through, write_in_parts
from tests.support.s3_server import S3Server
from tests.support.through_dcp import failed, save

pytestmark = [
    pytest.mark.usefixtures("here"),
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
]


@pytest.fixture(params=["s3", "any"])
def folder(request: pytest.FixtureRequest, bucket: str) -> Location:
    """``any``: the way of stores that fsspec knows and we do not, shown on one that has a cache of folders."""
    backend = s3_backend(S3FileSystem()) if request.param == "s3" else FsspecBackend(S3FileSystem())
    return Location(backend, f"{bucket}/a folder")


class TestStores(Promises):
    """On a server."""


# Files


@pytest.mark.parametrize("parts", [1.5, 3])
def test_a_large_file_goes_in_parts_of_any_order_from_several_threads(
    parts: float, server: S3Server, proxy: FlakyProxy, bucket: str
) -> None:
    file = through(proxy.endpoint, f"{bucket}/f")
    raw = random_bytes(int(parts * 16 * MIB))
    write_in_parts(file, raw)
    count = -(-len(raw) // (16 * MIB))
    numbers = [
        int(found[1]) for found in (re.search(r"partNumber=(\d+)", sent.path) for sent in proxy.requests) if found
    ]
    assert sorted(numbers) == list(range(1, count + 1))
    assert server.client.head_object(Bucket=bucket, Key="f")["ETag"].endswith(f'-{count}"')
    assert read_file(file, len(raw)) == raw
    assert server.uploads(bucket) == []


def test_parts_really_are_on_their_way_at_once(proxy: FlakyProxy, bucket: str) -> None:
    """Two parts wait for each other, which one after the other would not survive."""
    both = threading.Barrier(2, timeout=20)
    proxy.plan = lambda request: "delay" if "partNumber" in request.path and both.wait() < 2 else None
    write_in_parts(through(proxy.endpoint, f"{bucket}/f"), random_bytes(20 * MIB))
    assert len(proxy.injected) == 2


@pytest.mark.parametrize("length", [9 * MIB, 156 * 2**30, 157 * 2**30, 600 * 2**30, 2 * 2**40])
def test_parts_are_as_large_as_they_must_and_as_memory_allows(length: int, server: S3Server, bucket: str) -> None:
    location = locate(f"s3://{bucket}/f")
    writer = location.backend.create(location.path, length)
    assert writer.block_bytes >= 5 * MIB
    assert -(-length // writer.block_bytes) <= 10_000
    if length < 800 * 2**30:
        assert (writer.writes_at_once + 2) * writer.block_bytes <= 256 * MIB
        assert writer.writes_at_once > 1
    assert server.uploads(bucket) == ["f"]
    writer.abort()
    assert server.uploads(bucket) == []


@pytest.mark.parametrize("length", [0, 1, 8 * MIB])
def test_a_small_file_is_put_in_one_request(length: int, proxy: FlakyProxy, bucket: str) -> None:
    file = through(proxy.endpoint, f"{bucket}/f")
    write_file(file, random_bytes(length))
    assert [request.method for request in proxy.requests] == ["PUT", "HEAD"]
    assert read_file(file, length) == random_bytes(length)


@pytest.mark.parametrize("length", [100, 20 * MIB])
def test_a_file_that_is_given_up_was_never_there(length: int, folder: Location, server: S3Server, bucket: str) -> None:
    file = folder.child("f")
    writer = file.backend.create(file.path, length)
    writer.write(0, memoryview(random_bytes(min(length, 16 * MIB))))
    assert server.objects(bucket) == {}
    writer.abort()
    del writer
    assert server.objects(bucket) == {}
    assert server.uploads(bucket) == []


@pytest.mark.parametrize("length", [100, 20 * MIB])
def test_a_file_that_is_not_complete_in_the_end_is_an_error(length: int, folder: Location) -> None:
    file = folder.child("f")
    writer = file.backend.create(file.path, length + 1)
    for offset in range(0, length, writer.block_bytes):
        writer.write(offset, memoryview(random_bytes(min(length - offset, writer.block_bytes))))
    with pytest.raises(OSError, match=f"has {length} bytes after {length + 1} were written.*/a folder/f"):
        writer.finish()


@pytest.mark.parametrize("length", [100, 20 * MIB])
def test_a_file_that_cannot_be_replaced_stays_as_it_was(
    length: int, server: S3Server, proxy: FlakyProxy, bucket: str
) -> None:
    file = through(proxy.endpoint, f"{bucket}/f")
    write_file(file, b"old")
    proxy.plan = each("access_denied", "PUT")
    with pytest.raises(PermissionError):
        write_file(file, random_bytes(length))
    assert read_file(file, 100) == b"old"
    assert server.uploads(bucket) == []


def test_a_part_is_neither_copied_on_its_way_there_nor_on_its_way_back(bucket: str) -> None:
    file, raw = locate(f"s3://{bucket}/f"), random_bytes(32 * MIB)
    into = bytearray(len(raw))
    writer = file.backend.create(file.path, len(raw))
    tracemalloc.start()
    writer.write(0, memoryview(raw)[: writer.block_bytes])
    writer.write(writer.block_bytes, memoryview(raw)[writer.block_bytes :])
    writer.finish()
    assert file.backend.open(file.path).read(0, [memoryview(into)]) == len(raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert into == raw
    assert peak < 8 * MIB


# Faults


@pytest.mark.parametrize("fault", FAULTS)
def test_every_request_of_a_file_survives_every_fault(fault: str, proxy: FlakyProxy, bucket: str) -> None:
    """Each odd request, so that everything that is sent meets the fault and is sent again."""
    file, raw = through(proxy.endpoint, f"{bucket}/f"), random_bytes(9 * MIB)
    proxy.plan = lambda request: fault if request.number % 2 else None
    write_file(file, raw)
    assert read_file(file, len(raw)) == raw
    assert file.parent.backend.list_names(file.parent.path) == ["f"]
    file.backend.remove(file.path)
    with pytest.raises(FileNotFoundError):
        file.backend.size(file.path)
    assert len(proxy.injected) > 5


@pytest.mark.parametrize("ends", ["finish", "abort"])
def test_an_upload_whose_creation_was_not_confirmed_is_aborted_too(
    ends: str, server: S3Server, proxy: FlakyProxy, bucket: str
) -> None:
    file, raw = through(proxy.endpoint, f"{bucket}/f"), random_bytes(9 * MIB)
    proxy.plan = first("lost_answer", 2, "POST", "?uploads")
    writer = file.backend.create(file.path, len(raw))
    assert server.uploads(bucket) == ["f"] * 3
    writer.write(0, memoryview(raw))
    getattr(writer, ends)()
    assert server.uploads(bucket) == []
    assert server.objects(bucket) == ({"f": len(raw)} if ends == "finish" else {})


def test_uploads_whose_creation_is_never_confirmed_are_aborted(
    server: S3Server, proxy: FlakyProxy, bucket: str
) -> None:
    file = through(proxy.endpoint, f"{bucket}/f")
    proxy.plan = each("lost_answer", "POST", "?uploads")
    with pytest.raises(OSError, match="gave up after 5 tries"):
        file.backend.create(file.path, 9 * MIB)
    assert len(proxy.injected) == 5
    assert server.uploads(bucket) == []


def test_a_completion_whose_answer_was_lost_is_one(server: S3Server, proxy: FlakyProxy, bucket: str) -> None:
    file, raw = through(proxy.endpoint, f"{bucket}/f"), random_bytes(9 * MIB)
    proxy.plan = first("lost_answer", 1, "POST", "?uploadId")
    write_file(file, raw)
    assert len(proxy.injected) == 1
    assert read_file(file, len(raw)) == raw


def test_a_completion_that_fails_leaves_no_parts_behind(server: S3Server, proxy: FlakyProxy, bucket: str) -> None:
    file, raw = through(proxy.endpoint, f"{bucket}/f"), random_bytes(9 * MIB)
    proxy.plan = each("internal_error", "POST", "uploadId")
    with pytest.raises(OSError, match=f"gave up after 5 tries.*InternalError: as planned.*s3://{bucket}/f") as error:
        write_file(file, raw)
    assert error.value.errno == errno.EIO
    assert server.uploads(bucket) == []
    assert server.objects(bucket) == {}


def test_an_answer_that_is_cut_again_and_again_is_put_together(proxy: FlakyProxy, bucket: str) -> None:
    file, raw = through(proxy.endpoint, f"{bucket}/f"), random_bytes(5 * MIB)
    write_file(file, raw)
    proxy.plan = first("cut_answer", 4, "GET")
    one, other = bytearray(3 * MIB + 1), bytearray(2 * MIB)
    assert file.backend.open(file.path).read(3, [memoryview(one), memoryview(other)]) == len(raw) - 3
    assert bytes(one + other)[: len(raw) - 3] == raw[3:]
    assert len(proxy.injected) == 4


def test_reading_gives_up_and_says_what(proxy: FlakyProxy, bucket: str) -> None:
    file = through(proxy.endpoint, f"{bucket}/f")
    write_file(file, b"x" * 1000)
    proxy.plan = each("cut_answer", "GET")
    with pytest.raises(OSError, match=f"gave up after 5 tries.*s3://{bucket}/f") as error:
        # Half of the rest comes with each try; it is not enough.
        read_file(file, 1000)
    assert error.value.errno == errno.EIO
    assert "\n" not in str(error.value)


def test_a_server_that_does_not_answer_is_given_up(proxy: FlakyProxy, bucket: str) -> None:
    """With the time-outs that a user sets."""
    files = S3FileSystem(endpoint_url=proxy.endpoint, config_kwargs={"read_timeout": 0.1})
    file = Location(s3_backend(files, pause_s=0.01), f"{bucket}/f")
    proxy.delay_s = 1
    proxy.plan = each("delay", "HEAD")
    assert seconds_to_fail(OSError, "gave up after 5 tries.*ReadTimeoutError", write_file, file, b"x") < 5


def test_a_server_that_takes_no_more_bytes_is_given_up(
    proxy: FlakyProxy, server: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckptrun.engine.backends.s3_requests._TRY_S", 0.2)
    file = through(proxy.endpoint, f"{bucket}/f")
    proxy.delay_s = 1
    proxy.plan = each("delay", "PUT", "partNumber")
    match = "gave up after 5 tries.*TimeoutError: not done after 0.2 s"
    assert seconds_to_fail(OSError, match, write_file, file, random_bytes(16 * MIB)) < 5
    assert server.uploads(bucket) == []


def test_no_random_number_is_drawn_from_those_of_training(proxy: FlakyProxy, url: str, bucket: str) -> None:
    """Every generator stands where it stood, though retries wait for a random time."""
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    proxy.plan = every(3, ("slow_down", "lost_answer"))
    save({"w": torch.ones(3)}, through(proxy.endpoint, f"{bucket}/run/step_00000001"))
    assert len(proxy.injected) > 1
    assert (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()) == states
    assert list_committed(url) == [1]


def test_an_object_that_is_replaced_is_not_read_as_a_mixture(bucket: str) -> None:
    file = locate(f"s3://{bucket}/f")
    write_file(file, b"a" * 1000)
    reader = file.backend.open(file.path)
    half = bytearray(500)
    assert reader.read(0, [memoryview(half)]) == 500
    write_file(file, b"b" * 1000)
    with pytest.raises(OSError, match="was replaced while it was read") as error:
        reader.read(500, [memoryview(half)])
    assert error.value.errno == errno.ESTALE


# Mistakes of users


def test_a_bucket_that_is_not_there_is_said_at_once_and_not_made(server: S3Server) -> None:
    url = "s3://no-such-bucket/run"
    before = len(server.client.list_buckets()["Buckets"])
    assert seconds_to_fail(FileNotFoundError, "NoSuchBucket.*s3://no-such-bucket/run", list_committed, url) < 3
    error = failed(save, {"n": 1}, step_folder(url, 1))
    assert isinstance(error, FileNotFoundError)
    assert "NoSuchBucket" in str(error)
    with pytest.raises(CheckpointNotFoundError, match="s3://no-such-bucket"):
        read_manifest(url)
    assert len(server.client.list_buckets()["Buckets"]) == before


def test_missing_credentials_are_said_at_once(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    # Those of other tests have them already.
    monkeypatch.setattr(S3FileSystem, "_cache", {})
    assert seconds_to_fail(PermissionError, "Unable to locate credentials.*s3://bucket", list_committed, url) < 3


def test_a_refusal_is_not_tried_again(proxy: FlakyProxy, bucket: str) -> None:
    proxy.plan = lambda request: "access_denied"
    file = through(proxy.endpoint, f"{bucket}/f")
    assert seconds_to_fail(PermissionError, f"AccessDenied: as planned.*s3://{bucket}/f", write_file, file, b"x") < 3
    assert len(proxy.requests) == 1


def test_a_server_that_is_not_there_is_said_in_seconds(bucket: str) -> None:
    file = through("http://127.0.0.1:9", f"{bucket}/f")
    assert seconds_to_fail(OSError, "Could not connect to the endpoint URL", write_file, file, b"x") < 5


def test_who_may_not_list_uploads_lists_objects(proxy: FlakyProxy, bucket: str) -> None:
    file = through(proxy.endpoint, f"{bucket}/f")
    proxy.plan = each("access_denied", "GET", "uploads")
    write_file(file, b"x")
    assert file.parent.backend.list_names(bucket) == ["f"]
    file.backend.remove(file.path)
    assert file.parent.backend.list_names(bucket) == []
    assert len(proxy.injected) == 3


def test_a_whole_bucket_is_never_removed(url: str, bucket: str) -> None:
    write_file(locate(url).child("f"), b"x")
    with pytest.raises(PermissionError, match="whole bucket"):
        locate(url).backend.remove(bucket)
    assert locate(url).backend.list_names(bucket) == ["run"]


# Processes, threads, listings


def test_what_others_write_is_seen_at_once(folder: Location, server: S3Server, bucket: str) -> None:
    write_file(folder.child("a"), b"x")
    assert folder.backend.list_names(folder.path) == ["a"]
    server.client.put_object(Bucket=bucket, Key="a folder/b", Body=b"xy")
    assert folder.backend.list_names(folder.path) == ["a", "b"]
    server.client.put_object(Bucket=bucket, Key="a folder/b", Body=b"xyz")
    assert folder.backend.size(folder.child("b").path) == 3
    server.client.delete_object(Bucket=bucket, Key="a folder/b")
    assert folder.backend.list_names(folder.path) == ["a"]


def test_a_long_listing_comes_in_pages_and_is_removed_whole(server: S3Server, bucket: str) -> None:
    location = Location(s3_backend(S3FileSystem(s3_additional_kwargs={"MaxKeys": 2})), f"{bucket}/x")
    names = [f"f{number}" for number in range(5)]
    for name in names:
        write_file(location.child(name), b"x")
        write_file(location.child("sub").child(name), b"x")
    write_file(location.sibling("xy"), b"not in x")
    assert location.backend.list_names(location.path) == [*names, "sub"]
    location.backend.remove(location.path)
    assert server.objects(bucket) == {"xy": 8}


def test_a_location_pickles_with_what_it_was_told(proxy: FlakyProxy, bucket: str) -> None:
    file = through(proxy.endpoint, f"{bucket}/f")
    copy = pickle.loads(pickle.dumps(file))
    assert copy == file
    write_file(copy, b"x")
    assert len(proxy.requests) == 2
    assert copy.backend._requests._pause_s == 0.01


def test_a_location_works_on_in_a_forked_process(folder: Location) -> None:
    write_file(folder.child("a"), b"of the parent")
    child = multiprocessing.get_context("fork").Process(target=write_file, args=(folder.child("b"), b"of the child"))
    child.start()
    child.join(20)
    assert child.exitcode == 0
    assert read_file(folder.child("b"), 100) == b"of the child"


def test_several_threads_write_and_read_at_once(folder: Location) -> None:
    raws = {f"f{number}": random_bytes(100_000 + number) for number in range(8)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: write_file(folder.child(name), raws[name]), raws))
        found = list(threads.map(lambda name: read_file(folder.child(name), 200_000), raws))
    assert found == list(raws.values())
