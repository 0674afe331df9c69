"""Shard files, written and read: any safetensors reader opens them, and no damage to them goes unnoticed."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import Chunk, ShardFile
from ckptrun.engine.read_files import Range, ShardFiles
from ckptrun.engine.shard_file import PlannedChunk, plan_file
from ckptrun.engine.write_files import write_files
from ckptrun.errors import InternalError, ShardFileError
from tests.support.storage_backends import CountingBackend, on

NAME = "rank_00000.safetensors"
SAVE_ID = "0" * 32


def planned(leaf: str, dtype: str = "uint8", sizes: tuple[int, ...] = (5,)) -> PlannedChunk:
    return PlannedChunk(
        leaf=leaf, dtype=dtype, shape=(100, *sizes[1:]), offsets=(7,) + (0,) * (len(sizes) - 1), sizes=sizes
    )


def content(count: int) -> bytes:
    index = np.arange(count)
    return ((7 * index + index // 256) % 256).astype(np.uint8).tobytes()


class Bytes:
    """A chunk whose bytes are ``raw``."""

    step_bytes = 70_001

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.bytes = len(raw)

    def copy(self, begin: int, target: memoryview) -> None:
        target[:] = self.raw[begin : begin + target.nbytes]


def write(folder: Path, *chunks: PlannedChunk) -> tuple[ShardFile, dict[str, Chunk]]:
    plan = plan_file(NAME, chunks, save_id=SAVE_ID)
    (written,) = write_files(locate(folder), [plan], lambda _, chunk: Bytes(content(chunk.bytes)))
    return written.file, dict(written.chunks)


def read(folder: Location, file: ShardFile, leaf: str, chunk: Chunk, begin: int, target: bytearray) -> None:
    with ShardFiles(folder, {NAME: file}) as files:
        files.read([Range(leaf, chunk, begin, memoryview(target))])


def check(folder: Path, file: ShardFile, leaf: str | None = None) -> None:
    with ShardFiles(locate(folder), {NAME: file}) as files:
        files.check(NAME, leaf=leaf)


def test_safetensors_opens_it(tmp_path: Path) -> None:
    write(tmp_path, planned("b", "float32", (2, 3)), planned("a", "uint8"), planned("empty", "float64", (0, 3)))
    with safe_open(tmp_path / NAME, "pt") as file:
        assert set(file.keys()) == {"a", "b", "empty"}
        assert file.get_tensor("b").numpy().tobytes() == content(24)
        assert file.get_tensor("empty").shape == (0, 3)
        sharding = json.loads(file.metadata()["DCP_SHARDING_INFO"])
    assert sharding["b"] == {"saved_offsets": [7, 0], "shape": [100, 3], "dtype": "float32"}


def test_data_starts_at_a_page_and_every_chunk_at_its_element_size(tmp_path: Path) -> None:
    dtypes = {"a": "uint8", "b": "float64", "c": "bfloat16", "d": "float32"}
    file, chunks = write(tmp_path, *(planned(leaf, dtype, (3,)) for leaf, dtype in dtypes.items()))
    raw = (tmp_path / NAME).read_bytes()
    assert struct.unpack("<Q", raw[:8])[0] == file.header_bytes - 8
    assert file.header_bytes % 4096 == 0
    assert [
        chunks[leaf].begin % {"float64": 8, "float32": 4, "bfloat16": 2, "uint8": 1}[dtypes[leaf]] for leaf in chunks
    ] == [
        0,
        0,
        0,
        0,
    ]
    assert len(raw) == file.bytes


def test_a_chunk_is_read_back_from_anywhere_to_anywhere(tmp_path: Path) -> None:
    file, chunks = write(tmp_path, planned("a", sizes=(200_000,)))
    chunk = chunks["a"]
    assert len(chunk.checksums) == 13
    edges = [0, 1, 16_383, 16_384, 16_385, 32_768, 199_999, 200_000]
    for begin in edges:
        for end in (edge for edge in edges if edge > begin):
            target = bytearray(end - begin)
            read(locate(tmp_path), file, "a", chunk, begin, target)
            assert bytes(target) == content(200_000)[begin:end], (begin, end)


def test_only_the_blocks_that_are_needed_are_read(tmp_path: Path) -> None:
    file, chunks = write(tmp_path, planned("a", sizes=(8 * 2**20,)))
    backend = CountingBackend()
    read(on(backend, tmp_path), file, "a", chunks["a"], 2**20, bytearray(2**20))
    assert backend.bytes_read == file.header_bytes + 2**20


@pytest.mark.parametrize("bit", [0, 3, 7])
@pytest.mark.parametrize("position", [0, 65_535, 65_536, 199_999])
def test_a_flipped_bit_is_found_and_named(tmp_path: Path, position: int, bit: int) -> None:
    file, chunks = write(tmp_path, planned("layer.a", sizes=(200_000,)))
    raw = bytearray((tmp_path / NAME).read_bytes())
    raw[chunks["layer.a"].begin + position] ^= 1 << bit
    (tmp_path / NAME).write_bytes(raw)
    with pytest.raises(
        ShardFileError, match=rf"{NAME} of {tmp_path} is damaged in leaf 'layer.a'.*checksum .* says"
    ) as error:
        read(locate(tmp_path), file, "layer.a", chunks["layer.a"], 0, bytearray(200_000))
    assert error.value.folder == str(tmp_path)


def test_a_flipped_bit_anywhere_in_the_header_is_found(tmp_path: Path) -> None:
    file, _ = write(tmp_path, planned("a"))
    raw = (tmp_path / NAME).read_bytes()
    for position in range(0, file.header_bytes, 37):
        damaged = bytearray(raw)
        damaged[position] ^= 1
        (tmp_path / NAME).write_bytes(damaged)
        with pytest.raises(ShardFileError, match="header"):
            check(tmp_path, file)


@pytest.mark.parametrize("change", [-1, 1, -4096])
def test_a_file_of_another_length_is_found(tmp_path: Path, change: int) -> None:
    file, _ = write(tmp_path, planned("a", sizes=(5000,)))
    raw = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(raw[:change] if change < 0 else raw + bytes(change))
    with pytest.raises(ShardFileError, match=rf"has {file.bytes + change} bytes .*'a'.* says {file.bytes}"):
        check(tmp_path, file, leaf="a")


def test_a_missing_file_is_found(tmp_path: Path) -> None:
    file, chunks = write(tmp_path, planned("a"))
    (tmp_path / NAME).unlink()
    with pytest.raises(ShardFileError, match=rf"{NAME} of {tmp_path} is missing"):
        check(tmp_path, file)
    with pytest.raises(ShardFileError, match="is missing"):
        read(locate(tmp_path), file, "a", chunks["a"], 0, bytearray(5))


def test_a_file_cut_after_it_was_checked_is_found(tmp_path: Path) -> None:
    file, chunks = write(tmp_path, planned("a"))
    with ShardFiles(locate(tmp_path), {NAME: file}) as files:
        files.check(NAME)
        (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:-1])
        with pytest.raises(ShardFileError, match="ends after 4100 bytes, 4101 were expected"):
            files.read([Range("a", chunks["a"], 0, memoryview(bytearray(5)))])


def test_a_buffer_of_another_length_is_never_written_as_if_it_fitted(tmp_path: Path) -> None:
    plan = plan_file(NAME, [planned("a")], save_id=SAVE_ID)
    with pytest.raises(InternalError, match="'a' gave 4 bytes, planned were 5"):
        write_files(locate(tmp_path), [plan], lambda *_: Bytes(bytes(4)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [8 * 2**20 - 4096, 8 * 2**20 - 4095, 16 * 2**20 - 4096, 17 * 2**20 + 5])
def test_files_of_several_blocks_hold_what_was_given(tmp_path: Path, length: int) -> None:
    file, chunks = write(tmp_path, planned("a", sizes=(length,)), planned("b", sizes=(3,)))
    raw = (tmp_path / NAME).read_bytes()
    assert len(raw) == file.bytes
    for leaf, chunk in chunks.items():
        assert raw[chunk.begin : chunk.begin + chunk.bytes] == content(chunk.bytes), leaf
        found = bytearray(chunk.bytes)
        read(locate(tmp_path), file, leaf, chunk, 0, found)
        assert found == content(chunk.bytes), leaf
