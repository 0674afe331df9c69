"""A manifest comes back as it was, and nothing else passes for one."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash

from ckptrun.engine import manifest as module
from ckptrun.engine.layout import MANIFEST
from ckptrun.engine.manifest import Chunk, Leaf, Manifest, ShardFile, from_bytes, read_manifest, to_bytes
from ckptrun.errors import CheckpointNotFoundError, ManifestError

FILE = "rank_00000.safetensors"
CHECKSUM = "0" * 32


def chunk(offsets: tuple[int, ...], sizes: tuple[int, ...], begin: int = 4096) -> Chunk:
    count = 4
    for size in sizes:
        count *= size
    return Chunk(
        file=FILE,
        begin=begin,
        bytes=count,
        offsets=offsets,
        sizes=sizes,
        block_bytes=16,
        checksums=(CHECKSUM,) * -(-count // 16),
    )


def tensor_leaf(name: str = "model.w") -> Leaf:
    return Leaf(
        name=name,
        path=tuple(name.split(".")),
        dtype="float32",
        shape=(4, 3),
        value=None,
        digest="ab",
        chunks=(chunk((0, 0), (2, 3)), chunk((2, 0), (2, 3), begin=4120)),
    )


def value_leaf(name: str, value: Any) -> Leaf:
    return Leaf(name=name, path=(name, 0), dtype=None, shape=None, value=value, digest=None, chunks=())


def example() -> Manifest:
    leaves = [
        tensor_leaf(),
        value_leaf("none", None),
        value_leaf("lr", (0.1, -0.0, float("inf"))),
        value_leaf("b", b"\x00"),
    ]
    return Manifest(
        save_id="0123456789abcdef0123456789abcdef",
        created="2025-01-01T00:00:00+00:00",
        torch="2.13.0",
        world_size=2,
        run={"step": 20, "mesh": {"shard": 2}, 3: "int key"},
        files={FILE: ShardFile(name=FILE, bytes=4144, header_bytes=4096, header_checksum=CHECKSUM)},
        leaves={leaf.name: leaf for leaf in leaves},
        shared=(("model.v", "model.w"),),
    )


def with_body(change: Callable[[dict[str, Any]], None]) -> bytes:
    """The example with its JSON changed by hand, and a checksum that fits."""
    body = json.loads(to_bytes(example()))["manifest"]
    change(body)
    raw = json.dumps(body).encode()
    return envelope(raw)


def envelope(raw: bytes) -> bytes:
    head = {"format": 1, "bytes": len(raw), "xxh3_128": xxhash.xxh3_128(raw).hexdigest()}
    return json.dumps(head)[:-1].encode() + b', "manifest":\n' + raw + b"\n}\n"


def test_a_manifest_comes_back_as_it_was() -> None:
    back = from_bytes(to_bytes(example()), source="here")
    assert back == example()
    assert repr(back.leaves["lr"].value) == "(0.1, -0.0, inf)"


def test_the_whole_file_is_one_json_document() -> None:
    document = json.loads(to_bytes(example()))
    assert document["format"] == 1
    assert [leaf["name"] for leaf in document["manifest"]["leaves"]] == ["model.w", "none", "lr", "b"]


def test_a_change_of_any_single_bit_is_found() -> None:
    raw = to_bytes(example())
    for position in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(ManifestError):
            from_bytes(bytes(damaged), source="here")


def test_a_manifest_cut_anywhere_is_found() -> None:
    raw = to_bytes(example())
    for length in range(len(raw)):
        with pytest.raises(ManifestError):
            from_bytes(raw[:length], source="here")


@pytest.mark.parametrize("version", [2, 0, "1", True, None])
def test_another_version_says_so(version: Any) -> None:
    raw = to_bytes(example()).replace(b'"format": 1', b'"format": ' + json.dumps(version).encode())
    with pytest.raises(ManifestError, match="'format' must be 1"):
        from_bytes(raw, source="here")


def delete(*path: Any) -> Callable[[dict[str, Any]], None]:
    def change(body: Any) -> None:
        for key in path[:-1]:
            body = body[key]
        del body[path[-1]]

    return change


def put(*path_and_value: Any) -> Callable[[dict[str, Any]], None]:
    *path, value = path_and_value

    def change(body: Any) -> None:
        for key in path[:-1]:
            body = body[key]
        body[path[-1]] = value

    return change


FIRST_CHUNK = ("leaves", 0, "chunks", 0)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (delete("save_id"), "save_id"),
        (put("save_id", "../../etc"), "save_id"),
        (put("world_size", 0), "world_size"),
        (put("world_size", True), "world_size"),
        (put("files", {}), "files"),
        (put("files", 0, "name", "../rank_00000.safetensors"), r"files\[0\].name"),
        (put("files", 0, "bytes", -1), r"files\[0\].bytes"),
        (put("leaves", 0, "name", 3), r"leaves\[0\].name"),
        (put("leaves", 0, "path", []), r"leaves\[0\].path"),
        (put("leaves", 0, "path", ["a", 10**12]), r"leaves\[0\].path"),
        (put("leaves", 0, "dtype", "float31"), r"leaves\[0\].dtype"),
        (put("leaves", 0, "shape", [4, 3.0]), r"leaves\[0\].shape"),
        (put("leaves", 0, "digest", 1), r"leaves\[0\].digest"),
        (delete("leaves", 1, "value"), r"leaves\[1\].value"),
        (put(*FIRST_CHUNK, "file", "rank_00001.safetensors"), r"leaves\[0\].chunks\[0\].file"),
        (put(*FIRST_CHUNK, "begin", 0), r"leaves\[0\].chunks\[0\].begin"),
        (put(*FIRST_CHUNK, "begin", 4124), r"leaves\[0\].chunks\[0\].begin"),
        (put(*FIRST_CHUNK, "bytes", 20), r"leaves\[0\].chunks\[0\].bytes"),
        (put(*FIRST_CHUNK, "offsets", [3, 0]), r"leaves\[0\].chunks\[0\].offsets"),
        (put(*FIRST_CHUNK, "offsets", [0]), r"leaves\[0\].chunks\[0\].offsets"),
        (put(*FIRST_CHUNK, "offsets", [1, 0]), r"leaves\[0\].chunks"),
        (put(*FIRST_CHUNK, "block_bytes", 0), r"leaves\[0\].chunks\[0\].block_bytes"),
        (put(*FIRST_CHUNK, "checksums", []), r"leaves\[0\].chunks\[0\].checksums"),
        (put("shared", ["model.w"]), "shared"),
        (put("leaves", 1, "name", "model.w"), "leaves"),
    ],
)
def test_a_wrong_field_is_named(change: Callable[[dict[str, Any]], None], field: str) -> None:
    with pytest.raises(ManifestError, match=f"^here: field '\\.?{field}'"):
        from_bytes(with_body(change), source="here")


def test_a_damaged_plain_value_names_the_leaf() -> None:
    with pytest.raises(ManifestError, match="'b'"):
        from_bytes(with_body(put("leaves", 3, "value", {"$bytes": "?"})), source="here")


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 100_000, b"1", b"[]", b"\xff", b"9" * 10_000])
def test_json_that_is_no_manifest_is_an_error_of_our_own(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        from_bytes(envelope(raw), source="here")


def test_a_deeply_nested_value_is_an_error_of_our_own() -> None:
    deep: Any = 0
    for _ in range(300):
        deep = [deep]
    with pytest.raises(ManifestError):
        from_bytes(with_body(put("run", deep)), source="here")


def test_a_manifest_that_is_too_large_is_never_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = to_bytes(example())
    (tmp_path / MANIFEST).write_bytes(raw)
    monkeypatch.setattr(module, "_MAX_BYTES", len(raw) - 1)
    with pytest.raises(ManifestError, match="at most"):
        read_manifest(tmp_path)
    with pytest.raises(ManifestError, match="at most"):
        to_bytes(example())


def test_a_folder_without_a_manifest_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=str(tmp_path)):
        read_manifest(tmp_path)
    with pytest.raises(CheckpointNotFoundError, match="nowhere"):
        read_manifest(tmp_path / "nowhere")


def test_a_leaf_knows_whether_all_of_it_is_there() -> None:
    assert tensor_leaf().is_whole
    assert not dataclasses.replace(tensor_leaf(), chunks=tensor_leaf().chunks[:1]).is_whole
    assert value_leaf("x", 1).is_whole


def test_reading_a_manifest_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(to_bytes(example()))
    code = (
        "import sys; from ckptrun.engine.manifest import read_manifest; "
        f"assert read_manifest({str(tmp_path)!r}).run['step'] == 20; assert 'torch' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
