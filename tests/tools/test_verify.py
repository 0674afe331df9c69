"""``ckptrun verify``: every damage is found, all of it, at its place; and nothing that is whole is called damaged."""

import errno
import json
import os
import random
import resource
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
import xxhash

from ckptrun.engine.backends.local import LocalBackend, LocalFileReader
from ckptrun.engine.layout import MANIFEST
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import Chunk, Manifest, ShardFile, read_manifest, to_bytes
from ckptrun.engine.storage import ShardWriter
from ckptrun.errors import CheckpointNotFoundError
from ckptrun.tools import verify_command
from ckptrun.tools.check_checkpoint import check_checkpoint
from tests.support.bits import flip
from tests.support.storage_backends import on
from tests.tools.run_tool import ROOT, run_on_terminal, run_tool, run_without_torch
from tests.tools.saved import save

pytestmark = pytest.mark.distributed

FILES = ("rank_00000.safetensors", "rank_00001.safetensors")


@pytest.fixture
def folder(run_copy: Path) -> Path:
    """A checkpoint of two ranks that a test may spoil."""
    return run_copy / "checkpoints/step_00000020"


@pytest.fixture
def other(run_copy: Path) -> Path:
    """Another one of the same leaves and shapes, with other bits."""
    return run_copy / "checkpoints/step_00000040"


def damage_in(folder: Path) -> list[dict[str, Any]]:
    """What ``verify --json`` lists; the exit codes and the text must agree with it."""
    ended = run_tool("verify", folder, "--json")
    (document,) = ended.document["checkpoints"]
    found = document["damage"]
    assert ended.code == (3 if found else 0), ended
    assert document["status"] == ("damaged" if found else "whole")
    shown = run_tool("verify", folder)
    assert shown.code == ended.code
    assert ("DAMAGED" in shown.output) == bool(found)
    assert len([line for line in shown.output.splitlines() if line.startswith("  ")]) >= len(found)
    return found


def large(folder: Path) -> Chunk:
    """A chunk of several blocks, in the second file."""
    (chunk,) = [chunk for chunk in read_manifest(folder).leaves["model.large"].chunks if chunk.file == FILES[1]]
    assert len(chunk.checksums) > 10
    return chunk


def test_a_whole_checkpoint_is_whole(run_folder: Path, step_20: Path) -> None:
    ended = run_tool("verify", step_20)
    assert ended.code == 0
    size = sum(path.stat().st_size for path in step_20.glob("*.safetensors"))
    assert ended.output.startswith(f"{step_20}: whole; {size / 1e6:.1f} MB in 2 files, 11 leaves, checked in ")
    assert ended.output.endswith(" GB/s\n")
    (document,) = run_tool("verify", step_20, "--json").document["checkpoints"]
    assert document.pop("seconds") > 0
    assert document == {
        "path": str(step_20),
        "status": "whole",
        "save_id": read_manifest(step_20).save_id,
        "files": 2,
        "leaves": 11,
        "bytes": size,
        "damage": [],
        "unread": [],
        "notes": [],
    }


@pytest.mark.parametrize("bit", [0, 7])
@pytest.mark.parametrize("where", ["first", "last", "block end", "block begin"])
def test_a_flipped_bit_in_data_is_found_in_its_block(where: str, bit: int, folder: Path) -> None:
    chunk = large(folder)
    size = chunk.block_bytes
    offset = {"first": 0, "last": chunk.bytes - 1, "block end": 3 * size - 1, "block begin": 3 * size}[where]
    flip(folder / chunk.file, chunk.begin + offset, bit)
    index = offset // size
    begin, end = chunk.begin + index * size, chunk.begin + min((index + 1) * size, chunk.bytes)
    assert damage_in(folder) == [
        {
            "kind": "data",
            "file": chunk.file,
            "leaf": "model.large",
            "begin": begin,
            "end": end,
            "blocks": 1,
            "expected": chunk.checksums[index],
            "found": xxhash.xxh3_128_hexdigest((folder / chunk.file).read_bytes()[begin:end]),
        }
    ]
    text = run_tool("verify", folder).output
    assert f"{chunk.file}  model.large  {begin} to {end}" in text
    assert chunk.checksums[index] in text


def test_all_damage_is_listed_and_what_lies_together_is_one(folder: Path) -> None:
    manifest, chunk = read_manifest(folder), large(folder)
    (small,) = manifest.leaves["model.norm"].chunks
    size = chunk.block_bytes
    for block in (2, 3, 4, 7):
        flip(folder / chunk.file, chunk.begin + block * size)
    flip(folder / small.file, small.begin)
    flip(folder / FILES[0], 100)
    found = damage_in(folder)
    data = sorted(
        (item["leaf"], item["begin"], item["end"], item["blocks"]) for item in found if item["kind"] == "data"
    )
    assert data == [
        ("model.large", chunk.begin + 2 * size, chunk.begin + 5 * size, 3),
        ("model.large", chunk.begin + 7 * size, chunk.begin + 8 * size, 1),
        ("model.norm", small.begin, small.begin + small.bytes, 1),
    ]
    assert {item["file"] for item in found if item["kind"] == "header"} == {FILES[0]}


def test_a_file_of_which_nothing_is_right_is_listed_leaf_by_leaf(folder: Path) -> None:
    path = folder / FILES[1]
    path.write_bytes(bytes(255 - byte for byte in path.read_bytes()))
    found = damage_in(folder)
    chunks = [
        (leaf.name, chunk)
        for leaf in read_manifest(folder).leaves.values()
        for chunk in leaf.chunks
        if chunk.file == FILES[1] and chunk.bytes
    ]
    data = [item for item in found if item["kind"] == "data"]
    assert {item["leaf"]: item["blocks"] for item in data} == {name: len(chunk.checksums) for name, chunk in chunks}
    assert all(item["kind"] in ("data", "header") for item in found)


@pytest.mark.parametrize("position", [0, 3, 8, 9, 700, -1])
def test_a_flipped_bit_in_a_header_is_found(position: int, folder: Path) -> None:
    file = read_manifest(folder).files[FILES[0]]
    flip(folder / FILES[0], position % file.header_bytes)
    first, *more = damage_in(folder)
    assert {item["kind"] for item in (first, *more)} == {"header"}
    assert (first["file"], first["begin"], first["end"]) == (FILES[0], 0, file.header_bytes)
    expected = {(item["expected"], item["found"]) for item in (first, *more)}
    found = xxhash.xxh3_128_hexdigest((folder / FILES[0]).read_bytes()[: file.header_bytes])
    assert (file.header_checksum, found) in expected


@pytest.mark.parametrize("position", [0, 3, 20, 90, 500, -1])
def test_a_damaged_manifest_is_the_only_damage_that_can_be_told(position: int, folder: Path) -> None:
    flip(folder / MANIFEST, position)
    (item,) = damage_in(folder)
    assert item["kind"] == "manifest"
    assert item["file"] == MANIFEST
    (document,) = run_tool("verify", folder, "--json").document["checkpoints"]
    assert document["bytes"] == 0
    assert document["save_id"] is None


@pytest.mark.parametrize("where", ["empty", "in the length", "in the header", "header", "in a block", "block", "last"])
def test_a_cut_file_is_found_with_every_leaf_that_lost_bytes(where: str, folder: Path) -> None:
    manifest, chunk = read_manifest(folder), large(folder)
    file, path = manifest.files[FILES[1]], folder / FILES[1]
    length = {
        "empty": 0,
        "in the length": 5,
        "in the header": 1000,
        "header": file.header_bytes,
        "in a block": chunk.begin + chunk.block_bytes + 7,
        "block": chunk.begin + chunk.block_bytes,
        "last": file.bytes - 1,
    }[where]
    path.write_bytes(path.read_bytes()[:length])
    found = damage_in(folder)
    assert [item for item in found if item["kind"] == "length"] == [
        {
            "kind": "length",
            "file": FILES[1],
            "leaf": None,
            "begin": length,
            "end": file.bytes,
            "blocks": 1,
            "expected": f"{file.bytes:,} bytes",
            "found": f"{length:,} bytes",
        }
    ]
    cut = {
        leaf.name
        for leaf in manifest.leaves.values()
        for piece in leaf.chunks
        if piece.file == FILES[1] and piece.bytes and piece.begin + piece.bytes > length
    }
    absent = [item for item in found if item["kind"] == "absent"]
    assert {item["leaf"] for item in absent} == cut
    if where == "in a block":
        (item,) = [item for item in absent if item["leaf"] == "model.large"]
        assert item["begin"] == chunk.begin + chunk.block_bytes
        assert item["end"] == chunk.begin + chunk.bytes
    assert bool([item for item in found if item["kind"] == "header"]) == (length < file.header_bytes)
    assert not [item for item in found if item["kind"] == "data"]


def test_a_longer_file_is_found(folder: Path) -> None:
    with (folder / FILES[0]).open("ab") as file:
        file.write(b"x")
    (item,) = damage_in(folder)
    assert item["kind"] == "length"


def test_a_missing_file_is_found(folder: Path) -> None:
    size = (folder / FILES[0]).stat().st_size
    (folder / FILES[0]).unlink()
    (item,) = damage_in(folder)
    assert item == {
        "kind": "missing",
        "file": FILES[0],
        "leaf": None,
        "begin": 0,
        "end": size,
        "blocks": 1,
        "expected": f"{size:,} bytes",
        "found": item["found"],
    }
    assert item["found"].startswith("no such file; ")


def test_a_folder_in_the_place_of_a_file_is_found(folder: Path) -> None:
    (folder / FILES[0]).unlink()
    (folder / FILES[0]).mkdir()
    (item,) = damage_in(folder)
    assert item["found"] == "no regular file"
    (folder / FILES[0]).rmdir()
    os.mkfifo(folder / FILES[0])
    assert damage_in(folder) == [item]


def test_swapped_files_are_found(folder: Path) -> None:
    one, two = folder / FILES[0], folder / FILES[1]
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)
    found = damage_in(folder)
    assert {(item["file"], item["kind"]) for item in found} >= {(FILES[0], "header"), (FILES[1], "header")}


@pytest.mark.parametrize("mixed", [FILES[:1], FILES[1:], FILES])
def test_files_of_another_save_are_found_and_called_so(mixed: Sequence[str], folder: Path, other: Path) -> None:
    for name in mixed:
        shutil.copy(other / name, folder / name)
    found = damage_in(folder)
    assert {item["file"] for item in found} == set(mixed)
    ids = {(item["expected"], item["found"]) for item in found if item["expected"].startswith("save_id")}
    assert ids == {(f'save_id "{read_manifest(folder).save_id}"', f'save_id "{read_manifest(other).save_id}"')}
    assert "model.large" in {item["leaf"] for item in found if item["kind"] == "data"}


def test_the_manifest_of_another_save_is_found(folder: Path, other: Path) -> None:
    shutil.copy(other / MANIFEST, folder / MANIFEST)
    # It is of another step than its folder, too.
    assert {item["file"] for item in damage_in(folder)} == {*FILES, MANIFEST}


def test_any_flipped_bit_anywhere_is_found(tmp_path: Path) -> None:
    folder = save(tmp_path / "small", {"a": torch.arange(10), "b": torch.ones(3, 3), "c": [1.5, "text"]})
    files = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    assert len(files) == 2
    draw = random.Random(0)
    for path, raw in files.items():
        for position in {*range(200), *(draw.randrange(len(raw)) for _ in range(300)), len(raw) - 1}:
            flip(path, position, draw.randrange(8))
            assert check_checkpoint(locate(folder)).status == "damaged", (path.name, position)
            path.write_bytes(raw)
    assert check_checkpoint(locate(folder)).status == "whole"


def header_of(raw: bytes) -> dict[str, Any]:
    """The JSON of a shard file's header."""
    return json.loads(raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]])


def with_header(folder: Path, text: str) -> None:
    """Give the first file another header of the same length, and a manifest that has the right checksum of it."""
    manifest, path = read_manifest(folder), folder / FILES[0]
    file, raw = manifest.files[FILES[0]], path.read_bytes()
    header = raw[:8] + text.encode().ljust(file.header_bytes - 8)
    assert len(header) == file.header_bytes
    path.write_bytes(header + raw[file.header_bytes :])
    put_file(folder, manifest, replace(file, header_checksum=xxhash.xxh3_128_hexdigest(header)))


def put_file(folder: Path, manifest: Manifest, file: ShardFile) -> None:
    """Say something else of one file."""
    (folder / MANIFEST).write_bytes(to_bytes(replace(manifest, files={**manifest.files, file.name: file})))


def change(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Change a field of the entry of ``model.large``."""
    return lambda header: header["model.large"].update({field: value})


def change_metadata(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Change one of the texts."""
    return lambda header: header["__metadata__"].update({key: value})


def change_sharding(leaf: str, field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Change where a chunk belongs."""

    def apply(header: dict[str, Any]) -> None:
        sharding = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
        sharding[leaf][field] = value
        header["__metadata__"]["DCP_SHARDING_INFO"] = json.dumps(sharding)

    return apply


def add_entry(header: dict[str, Any]) -> None:
    header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("apply", "leaf", "words"),
    [
        (change("dtype", "I32"), "model.large", ['"I32"', '"F32"']),
        (change("shape", [1000, 150]), "model.large", ["[1000, 150]", "[150, 1000]"]),
        (change("data_offsets", [0, 4]), "model.large", ["data_offsets"]),
        (change("more", 1), "model.large", ['"more": 1']),
        (change("shape", [150.0, 1000]), "model.large", ["150.0"]),
        (lambda header: header.pop("model.large"), "model.large", ["an entry", "none"]),
        (add_entry, "more", ["no entry"]),
        (change_metadata("save_id", "0" * 32), None, ["save_id", "0" * 32]),
        (change_metadata("format", "tf"), None, ["pt", "tf"]),
        (change_metadata("ckptrun_format", 1), None, ["ckptrun_format"]),
        (change_metadata("DCP_VERSION", "2.0"), None, ["DCP_VERSION", "2.0"]),
        (change_metadata("DCP_SHARDING_INFO", "{"), None, ["DCP_SHARDING_INFO", "JSON"]),
        (change_metadata("DCP_SHARDING_INFO", "[]"), None, ["DCP_SHARDING_INFO", "an object"]),
        (change_metadata("DCP_SHARDING_INFO", 3), None, ["DCP_SHARDING_INFO"]),
        (change_sharding("model.large", "saved_offsets", [150, 0]), "model.large", ["[150, 0]", "[0, 0]"]),
        (change_sharding("model.large", "shape", [300, 1001]), "model.large", ["[300, 1001]"]),
        (change_sharding("model.large", "dtype", "float16"), "model.large", ["float16", "float32"]),
        (lambda header: header.pop("__metadata__"), None, ["__metadata__", "null"]),
    ],
)
def test_a_header_that_contradicts_the_manifest_is_found(
    apply: Callable[[dict[str, Any]], Any], leaf: str | None, words: list[str], folder: Path
) -> None:
    header = header_of((folder / FILES[0]).read_bytes())
    apply(header)
    with_header(folder, json.dumps(header, separators=(",", ":")))
    found = damage_in(folder)
    assert {(item["kind"], item["file"], item["leaf"]) for item in found} == {("header", FILES[0], leaf)}
    for word in words:
        assert word in found[0]["expected"] + found[0]["found"]


@pytest.mark.parametrize(
    "text",
    ["", "nonsense", "[]", "null", '{"a": 1, "a": 2}', "[" * 3000, '{"a":' * 800, "1" * 3000, "\x00", '"\ud7ff"'],
)
def test_a_header_that_is_none_is_found(text: str, folder: Path) -> None:
    with_header(folder, text)
    found = damage_in(folder)
    assert {item["kind"] for item in found} == {"header"}
    # Names that JSON cannot have must not end the tool either.
    assert len(found) == 1


def test_a_header_that_is_no_text_is_found(folder: Path) -> None:
    manifest, path = read_manifest(folder), folder / FILES[0]
    file = manifest.files[FILES[0]]
    raw = bytearray(path.read_bytes())
    raw[8 : file.header_bytes] = b"\xff" * (file.header_bytes - 8)
    path.write_bytes(raw)
    put_file(folder, manifest, replace(file, header_checksum=xxhash.xxh3_128_hexdigest(raw[: file.header_bytes])))
    (item,) = damage_in(folder)
    assert item["kind"] == "header"


def test_bytes_that_belong_to_no_chunk_or_to_two_are_found(folder: Path) -> None:
    manifest = read_manifest(folder)
    leaf = manifest.leaves["model.large"]
    first = leaf.chunks[0]
    less = replace(
        first, sizes=(149, 1000), bytes=149 * 4000, checksums=first.checksums[: -(-149 * 4000 // first.block_bytes)]
    )
    leaves = {**manifest.leaves, leaf.name: replace(leaf, chunks=(less, *leaf.chunks[1:]))}
    (folder / MANIFEST).write_bytes(to_bytes(replace(manifest, leaves=leaves)))
    found = damage_in(folder)
    place = first.begin + 149 * 4000, first.begin + 150 * 4000
    assert ("manifest", *place, "none") in [(i["kind"], i["begin"], i["end"], i["found"]) for i in found]
    norm = manifest.leaves["model.norm"]
    (chunk,) = norm.chunks
    twice = {**manifest.leaves, "again": replace(norm, name="again", path=("again",))}
    (folder / MANIFEST).write_bytes(to_bytes(replace(manifest, leaves=twice)))
    found = damage_in(folder)
    assert ("manifest", chunk.begin, chunk.begin + chunk.bytes, "two") in [
        (i["kind"], i["begin"], i["end"], i["found"]) for i in found
    ]


def test_an_impossible_length_of_a_header_is_found(folder: Path) -> None:
    manifest = read_manifest(folder)
    leaves = {name: leaf for name, leaf in manifest.leaves.items() if not leaf.is_tensor}
    for length in (0, 7):
        file = replace(manifest.files[FILES[0]], header_bytes=length)
        (folder / MANIFEST).write_bytes(to_bytes(replace(manifest, leaves=leaves, files={file.name: file})))
        assert "manifest" in {item["kind"] for item in damage_in(folder)}


def test_files_that_the_manifest_does_not_name_are_noted(folder: Path) -> None:
    (folder / "notes.txt").touch()
    (folder / "rank_00007.safetensors").touch()
    ended = run_tool("verify", folder)
    assert ended.code == 0
    assert "note: Not named by the manifest, so read by nobody: notes.txt, rank_00007.safetensors." in ended.output
    (document,) = run_tool("verify", folder, "--json").document["checkpoints"]
    assert len(document["notes"]) == 1


def test_a_leaf_saved_by_some_of_its_ranks_is_noted(tmp_path: Path) -> None:
    folder = save(tmp_path / "part", {"w": torch.ones(4)})
    manifest = read_manifest(folder)
    leaves = {"w": replace(manifest.leaves["w"], shape=(8,))}
    (folder / MANIFEST).write_bytes(to_bytes(replace(manifest, leaves=leaves)))
    assert "not whole: w." in run_tool("verify", folder).output


def test_of_a_run_the_newest_is_checked_or_each(run_copy: Path, folder: Path, other: Path) -> None:
    flip(folder / FILES[0], -1)
    ended = run_tool("verify", run_copy)
    assert ended.code == 0
    assert str(other) in ended.output
    assert str(folder) not in ended.output
    ended = run_tool("verify", run_copy / "checkpoints", "--all")
    assert ended.code == 3
    assert f"{folder}: DAMAGED" in ended.output
    assert f"{other}: whole" in ended.output
    assert ended.output.endswith("1 of 2 checkpoints are whole.\n")
    documents = run_tool("verify", run_copy, "--all", "--json").document["checkpoints"]
    assert [document["status"] for document in documents] == ["damaged", "whole"]
    flip(other / MANIFEST, 300)
    assert run_tool("verify", run_copy).code == 3


@pytest.mark.parametrize("arguments", [(), ("--all",)])
def test_what_is_no_checkpoint_ends_with_code_2(arguments: tuple[str, ...], tmp_path: Path) -> None:
    ended = run_tool("verify", tmp_path / "nothing", *arguments)
    assert ended.code == 2
    assert "no checkpoint" in ended.errors
    (tmp_path / f"step_00000020.tmp-{'0' * 32}").mkdir()
    ended = run_tool("verify", tmp_path, *arguments)
    assert ended.code == 2
    assert "no committed checkpoint" in ended.errors


class FailingReader(LocalFileReader):
    """Fails to read past the header of the first file."""

    error = errno.EIO

    def read(self, offset: int, targets: Sequence[memoryview]) -> int:
        if offset >= 4096:
            raise OSError(self.error, os.strerror(self.error))
        return super().read(offset, targets)


class FailingBackend(LocalBackend):
    """A disk or a network that does not give bytes back, or not even the file."""

    def __init__(self, error: int, *, opens: bool = True) -> None:
        super().__init__()
        self.error, self.opens = error, opens

    def open(self, path: str) -> LocalFileReader:
        if not path.endswith(FILES[0]):
            return super().open(path)
        if not self.opens:
            raise OSError(self.error, os.strerror(self.error), path)
        reader = FailingReader(self.calls, path)
        reader.error = self.error
        return reader


def test_a_device_that_fails_is_damage_and_the_rest_is_still_checked(folder: Path) -> None:
    chunk = large(folder)
    flip(folder / chunk.file, chunk.begin)
    found = check_checkpoint(on(FailingBackend(errno.EIO), folder))
    assert found.status == "damaged"
    assert {(damage.file, damage.kind) for damage in found.damage} == {(FILES[0], "unreadable"), (FILES[1], "data")}


@pytest.mark.parametrize("opens", [True, False])
@pytest.mark.parametrize("error", [errno.EACCES, errno.ETIMEDOUT])
def test_what_could_not_be_read_is_neither_whole_nor_damaged(error: int, opens: bool, folder: Path) -> None:
    found = check_checkpoint(on(FailingBackend(error, opens=opens), folder))
    assert found.status == "not_checked"
    assert found.damage == []
    assert FILES[0] in found.unread[0]
    assert os.strerror(error) in found.unread[0]


def test_what_could_not_be_read_ends_with_code_1(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_command, "place_of", lambda path: on(FailingBackend(errno.EACCES), Path(path)))
    ended = run_tool("verify", folder)
    assert ended.code == 1
    assert "NOT CHECKED" in ended.output
    assert f"not checked: {FILES[0]} cannot be read at byte 0" not in ended.output
    assert f"not checked: {FILES[0]} cannot be read at byte 4,096: " in ended.output


class RemovingBackend(LocalBackend):
    """A run that removes or replaces the checkpoint while it is checked."""

    def __init__(self, folder: Path, by: Path | None) -> None:
        super().__init__()
        self.folder, self.by = folder, by

    def open(self, path: str) -> LocalFileReader:
        if path.endswith(FILES[1]):
            shutil.rmtree(self.folder)
            if self.by is not None:
                self.by.rename(self.folder)
        return super().open(path)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_checkpoint_that_is_removed_meanwhile_is_not_called_damaged(
    replaced: bool, folder: Path, other: Path
) -> None:
    with pytest.raises(CheckpointNotFoundError, match="replaced by save" if replaced else "not a checkpoint"):
        check_checkpoint(on(RemovingBackend(folder, other if replaced else None), folder))


def test_a_file_that_goes_once_it_is_open_is_read_to_its_end(folder: Path) -> None:
    """Nothing is asked of its name any more: a removal may come between any two calls."""

    class Unlinking(LocalBackend):
        def open(self, path: str) -> LocalFileReader:
            reader = super().open(path)
            if not path.endswith("manifest.json"):
                Path(path).unlink()
            return reader

    assert check_checkpoint(on(Unlinking(), folder)).status == "whole"


def test_a_checkpoint_in_memory_is_checked() -> None:
    url = "memory://verify/step_00000005"
    dcp.save({"model": {"w": torch.ones(3)}}, storage_writer=ShardWriter(url), no_dist=True)
    assert run_tool("verify", "memory://verify").code == 0


def test_states_of_any_kind_are_whole(tmp_path: Path) -> None:
    for name, state in {
        "values only": {"a": 1},
        "empty tensor": {"a": torch.zeros(0, 5), "b": 1},
        "as bits": {"a": torch.ones(3, dtype=torch.complex128), "b": torch.ones(2, dtype=torch.float8_e8m0fnu)},
        "many": {str(index): torch.full((index,), index) for index in range(300)},
        "long": {"a": torch.ones(3_000_000), "b": torch.ones(5_000_001, dtype=torch.uint8)},
    }.items():
        assert run_tool("verify", save(tmp_path / name, state)).code == 0, name


def test_a_terminal_gets_a_bar_and_a_pipe_does_not(tmp_path: Path, step_20: Path) -> None:
    assert "━" in run_on_terminal("verify", step_20).output
    assert "\x1b" not in run_on_terminal("verify", step_20, "--no-color").output
    assert "\x1b" not in run_tool("verify", step_20).output


def test_no_torch_is_imported(run_folder: Path) -> None:
    assert run_without_torch("verify", run_folder, "--all").code == 0
    assert run_without_torch("verify", run_folder, "--json").code == 0


MEASURE = """
import resource, sys
from ckptrun.tools.cli import main
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
import ckptrun.tools.verify_command
before = peak()
code = main(["verify", sys.argv[1]])
print(peak() - before, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoint(tmp_path: Path) -> None:
    folder = save(tmp_path / "large", {"a": torch.ones(50_000_000), "b": torch.ones(25_000_000)})
    ended = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    extra = int(ended.stderr) * (1 if sys.platform == "darwin" else 1024)
    assert extra < 40 * 2**20
    assert resource.RUSAGE_SELF == 0
