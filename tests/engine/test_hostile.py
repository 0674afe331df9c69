"""Opening a folder that means harm gives an error of the package's own: no code runs, nothing hangs, no memory is taken."""

import copy
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ckptrun import ShardWriter
from ckptrun.engine.layout import MANIFEST
from ckptrun.engine.manifest import from_bytes, read_manifest
from ckptrun.engine.read_state import read_state
from ckptrun.errors import CheckpointError, CheckpointNotFoundError, ManifestError
from tests.support.bits import all_bits

STATE = {
    "w": torch.arange(6.0).reshape(2, 3),
    "many": {"b": torch.ones(3, dtype=torch.bfloat16)},
    "lr": 0.5,
    "l": [1, "x"],
}
CHECKS = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "step_00000001"
    dcp.save(copy.deepcopy(STATE), storage_writer=ShardWriter(folder), no_dist=True)
    return folder


def sealed(body: Any) -> bytes:
    """A manifest with ``body``, and a checksum that is right: what a hostile writer, not a bad disk, makes."""
    raw = json.dumps(body).encode()
    first = f'{{"format": 1, "bytes": {len(raw)}, "xxh3_128": "{xxhash.xxh3_128_hexdigest(raw)}", "manifest":\n'
    return first.encode() + raw + b"\n}\n"


def reads_or_refuses(folder: Path) -> None:
    """Read everything: a state, or an error that ckptrun raises on purpose; never anything else."""
    try:
        read_state(folder)
    except CheckpointError:
        return


@CHECKS
@given(data=st.data())
def test_bytes_of_a_manifest_changed_at_will(saved: Path, data: st.DataObject) -> None:
    raw = bytearray((saved / MANIFEST).read_bytes())
    begin = data.draw(st.integers(0, len(raw) - 1))
    length = data.draw(st.integers(0, 20))
    raw[begin : begin + length] = data.draw(st.binary(max_size=20))
    if bytes(raw) == (saved / MANIFEST).read_bytes():
        return
    with pytest.raises(ManifestError):
        from_bytes(bytes(raw), source="fuzz")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["float32", "uint8", "float4_e2m1fn_x2", "rank_00000.safetensors", "../../etc/passwd", "$tuple"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.sampled_from(["$float", "$dict"]), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything in a JSON document."""
    found = [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        found += places(item, (*path, key))
    return found


def body_of(folder: Path) -> Any:
    return json.loads((folder / MANIFEST).read_text())["manifest"]


@CHECKS
@given(data=st.data())
def test_a_manifest_with_a_right_checksum_and_anything_in_it(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    body = body_of(saved)
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(places(body)[1:]))
        holder = body
        for key in path[:-1]:
            holder = holder[key]
        if data.draw(st.booleans()):
            holder[path[-1]] = data.draw(JSON)
        elif isinstance(holder, dict):
            del holder[path[-1]]
        else:
            holder.append(data.draw(JSON))
    for file in saved.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / MANIFEST).write_bytes(sealed(body))
    reads_or_refuses(tmp_path)


@CHECKS
@given(data=st.data())
def test_bytes_of_a_shard_header_changed_at_will(saved: Path, tmp_path: Path, data: st.DataObject) -> None:
    (file,) = saved.glob("*.safetensors")
    raw = bytearray(file.read_bytes())
    begin = data.draw(st.integers(0, 5000))
    piece = data.draw(st.binary(min_size=1, max_size=20))
    raw[begin : begin + len(piece)] = piece
    (tmp_path / file.name).write_bytes(raw)
    (tmp_path / MANIFEST).write_bytes((saved / MANIFEST).read_bytes())
    if bytes(raw) == file.read_bytes():
        assert all_bits(read_state(tmp_path)) == all_bits(STATE)
        return
    with pytest.raises(CheckpointError):
        read_state(tmp_path)


HUGE: dict[str, Any] = {
    "a shape that no file fills": lambda body: body["leaves"][0].update(shape=[2**40, 2**20]),
    "a shape whose product has no end": lambda body: body["leaves"][0].update(shape=[2**62] * 8),
    "an empty tensor of huge dims": lambda body: body["leaves"][0].update(shape=[2**62, 2**62, 0], chunks=[]),
    "a chunk beyond its file": lambda body: body["leaves"][0]["chunks"][0].update(begin=2**60),
    "a block as large as memory": lambda body: body["leaves"][0]["chunks"][0].update(block_bytes=2**40),
    "a file that says it is huge": lambda body: body["files"][0].update(bytes=2**60, header_bytes=2**59),
    "a list index as large as memory": lambda body: body["leaves"][0].update(path=["x", 2**40]),
    "a name that leaves the folder": lambda body: body["files"][0].update(name="../../../etc/passwd"),
    "a name with a null byte": lambda body: body["files"][0].update(name="rank_00000.safetensors\0"),
    "a value nested without end": lambda body: body["leaves"][-1].update(value=_nested(10_000)),
    "a rank count without end": lambda body: body.update(world_size=2**80),
}


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(min(depth, 900)):
        value = [value]
    return value


@pytest.mark.parametrize("attack", HUGE)
def test_what_asks_for_the_impossible_is_refused_in_little_memory_and_time(
    saved: Path, tmp_path: Path, attack: str
) -> None:
    body = body_of(saved)
    HUGE[attack](body)
    for file in saved.glob("*.safetensors"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / MANIFEST).write_bytes(sealed(body))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        read_state(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_json_nested_deeper_than_any_stack_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(sealed_raw(b"[" * 1_000_000 + b"]" * 1_000_000))
    with pytest.raises(ManifestError, match="cannot be parsed"):
        read_manifest(tmp_path)


def sealed_raw(raw: bytes) -> bytes:
    first = f'{{"format": 1, "bytes": {len(raw)}, "xxh3_128": "{xxhash.xxh3_128_hexdigest(raw)}", "manifest":\n'
    return first.encode() + raw + b"\n}\n"


def test_a_manifest_too_large_to_be_one_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / MANIFEST).open("wb") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(ManifestError, match="at most"):
        read_manifest(tmp_path)


def test_a_manifest_that_is_a_pipe_does_not_hang(tmp_path: Path) -> None:
    code = (
        "import os, sys; from ckptrun.engine.manifest import read_manifest\n"
        "os.mkfifo(sys.argv[1] + '/manifest.json')\n"
        "read_manifest(sys.argv[1])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert "ManifestError" in ended.stderr or "CheckpointNotFoundError" in ended.stderr


def test_links_out_of_the_folder_are_data_like_any_other(saved: Path, tmp_path: Path) -> None:
    """A link is followed, but what it leads to must be what was written, to the last bit."""
    (file,) = saved.glob("*.safetensors")
    (tmp_path / MANIFEST).write_bytes((saved / MANIFEST).read_bytes())
    (tmp_path / file.name).symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError):
        read_state(tmp_path)
    (tmp_path / file.name).unlink()
    (tmp_path / file.name).symlink_to(file)
    assert all_bits(read_state(tmp_path)) == all_bits(STATE)


def test_a_folder_that_is_none_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        read_state(tmp_path / "nothing")
