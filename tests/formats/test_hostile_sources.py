"""No file of any format makes the tools run code, take memory without end, or hand out what is damaged."""

import io
import json
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint._extension import StreamTransformExtension
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)

from ckptrun.errors import (
    CheckpointNotFoundError,
    CkptrunError,
    ForeignFileError,
    ShardFileError,
    StateMismatchError,
    UnsupportedLeafError,
)
from ckptrun.formats.dcp.pickle_machine import read_pickle
from ckptrun.formats.open_source import open_source
from tests.support.bits import bits
from tests.support.foreign import (
    MARKS,
    Harm,
    edit_metadata,
    read_all,
    write,
)

pytestmark = MARKS


@pytest.fixture
def dcp_folder(tmp_path: Path) -> Path:
    return write("dcp", {"w": torch.arange(12.0).view(4, 3), "n": 3, "l": [1, 2]}, tmp_path / "dcp")


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "harm_was_done"


PLACES: dict[str, Callable[[Any, Any], None]] = {
    "planner_data": lambda metadata, harm: setattr(metadata, "planner_data", harm),
    "a name": lambda metadata, harm: metadata.state_dict_metadata.update({"x": harm}),
    "a field": lambda metadata, harm: setattr(metadata.storage_meta, "checkpoint_id", harm),
    "version": lambda metadata, harm: setattr(metadata, "version", harm),
}


@pytest.mark.parametrize("place", PLACES)
def test_metadata_that_runs_code_is_refused_and_runs_nothing(place: str, dcp_folder: Path, marker: Path) -> None:
    edit_metadata(dcp_folder, lambda metadata: PLACES[place](metadata, Harm(marker)))
    with pytest.raises(ForeignFileError, match=r"\.metadata asks for 'posix\.system', which no such file needs"):
        open_source(dcp_folder)
    assert not marker.exists()
    pickle.loads((dcp_folder / ".metadata").read_bytes())
    assert marker.exists(), "the file was not hostile at all"


@pytest.mark.parametrize(
    "raw",
    [
        b"cos\nsystem\n(S'touch MARKER'\ntR.",
        b"(S'touch MARKER'\nios\nsystem\n.",
        b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x93\x8c\x0ctouch MARKER\x85R.",
        b"\x80\x04cbuiltins\neval\n\x8c\x04open\x85R.",
        b"\x80\x04ctorch\nload\n\x8c\x04open\x85R.",
        b"\x80\x04ctorch.serialization\n_get_layout.__globals__\n.",
        b"\x80\x02c__main__\nX\n)\x81}b.",
        b"\x80\x04\x82\x01.",
    ],
)
def test_no_pickle_names_what_it_likes(raw: bytes, dcp_folder: Path) -> None:
    (dcp_folder / ".metadata").write_bytes(raw)
    with pytest.raises(ForeignFileError, match=r"asks for|is no whole pickle"):
        open_source(dcp_folder)


def test_code_in_a_plain_value_of_dcp_is_refused_by_name(tmp_path: Path, marker: Path) -> None:
    folder = write("dcp", {"w": torch.ones(2), "bad": Harm(marker), "n": 3}, tmp_path / "dcp")
    with open_source(folder) as source:
        assert bits(source.read_rows("w", 0, 2)) == bits(torch.ones(2))
        assert source.leaves["n"].value == 3
        with pytest.raises(UnsupportedLeafError, match=r"Leaf 'bad' of .* holds objects of posix\.system.*Nothing was"):
            _ = source.leaves["bad"].value
    assert not marker.exists()


@pytest.mark.parametrize("is_new", [True, False])
def test_code_in_a_file_of_torch_save_is_refused_by_name(is_new: bool, tmp_path: Path, marker: Path) -> None:
    path = tmp_path / "bad.pt"
    torch.save({"w": torch.ones(2), "bad": Harm(marker)}, path, _use_new_zipfile_serialization=is_new)
    with pytest.raises(UnsupportedLeafError, match=r"holds objects of posix\.system"):
        open_source(path)
    assert not marker.exists()


class Rot(StreamTransformExtension):
    """Stands for compression."""

    @staticmethod
    def registry_name() -> str:
        return "stream.rot"

    @staticmethod
    def from_descriptor(version: str) -> "Rot":
        return Rot()

    def get_descriptor(self) -> str:
        return "stream.rot/1"

    def transform_to(self, output: IO[bytes]) -> IO[bytes]:
        return output

    def transform_from(self, input: IO[bytes]) -> IO[bytes]:
        return input


def test_transformed_streams_of_dcp_are_refused(tmp_path: Path) -> None:
    writer = FileSystemWriter(tmp_path / "dcp", _extensions=[Rot()])
    dcp.save({"w": torch.ones(2)}, storage_writer=writer, no_dist=True)
    with pytest.raises(ForeignFileError, match=r"leaf 'w' went through stream\.rot/1"):
        open_source(tmp_path / "dcp")


def _lie(**fields: Any) -> Callable[[Any], None]:
    def change(metadata: Metadata) -> None:
        stored = metadata.state_dict_metadata["w"]
        for name, value in fields.items():
            setattr(stored, name, value)

    return change


def _relocate(**fields: Any) -> Callable[[Any], None]:
    def change(metadata: Metadata) -> None:
        for index, info in metadata.storage_data.items():
            if index.fqn == "w":
                info.__dict__.update(fields)

    return change


def _chunk(offsets: list[int], sizes: list[int]) -> ChunkStorageMetadata:
    return ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))


LIES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "outside": (_relocate(relative_path="../secret"), "only files of the folder itself"),
    "absolute": (_relocate(relative_path="/etc/passwd"), "only files of the folder itself"),
    "missing file": (_relocate(relative_path="__7_0.distcp"), "is missing"),
    "past the end": (_relocate(offset=10**9), "were expected in it"),
    "a negative offset": (_relocate(offset=-1), "no count"),
    "too long": (_relocate(length=2**62), "were expected"),
    "elsewhere": (_relocate(offset=0, length=1261), "no tensor of torch.save is there"),
    "between": (_relocate(offset=600, length=1261), "no archive of torch.save is there"),
    "too short": (_relocate(length=10), "has only 10 bytes"),
    "a larger shape": (_lie(size=torch.Size([5, 3])), "only partly"),
    "a huge shape": (
        _lie(size=torch.Size([2**40, 2**20]), chunks=[_chunk([0, 0], [2**40, 2**20])]),
        "cannot have the shape",
    ),
    "a large chunk": (_lie(size=torch.Size([2**30, 3]), chunks=[_chunk([0, 0], [2**30, 3])]), "has only"),
    "another chunk": (_lie(chunks=[_chunk([0, 0], [3, 4])]), "does not lie in it"),
    "another shape": (_lie(size=torch.Size([3, 4]), chunks=[_chunk([0, 0], [3, 4])]), r"of shape \[4, 3\] there"),
    "overlap": (_lie(chunks=[_chunk([0, 0], [4, 3]), _chunk([0, 0], [4, 3])]), "overlap"),
    "no chunks": (_lie(chunks=[]), "only partly"),
    "other dims": (_lie(chunks=[_chunk([0], [12])]), "does not say where leaf 'w' is"),
    "another dtype": (_lie(properties=TensorProperties(dtype=torch.int32)), "is float32 of shape"),
    "a quantized dtype": (_lie(properties=TensorProperties(dtype=torch.qint8)), r"asks for 'torch\.qint8'"),
    "no place": (lambda metadata: metadata.storage_data.clear(), "does not say where leaf"),
    "no state": (lambda metadata: setattr(metadata, "state_dict_metadata", None), "where a dict should be"),
    "another index": (
        lambda metadata: metadata.storage_data.update({"x": metadata.storage_data[MetadataIndex("n")]}),
        "where a torch.distributed.checkpoint.metadata.MetadataIndex should be",
    ),
    "a value for a tensor": (
        lambda metadata: metadata.state_dict_metadata.update({"w": BytesStorageMetadata()}),
        "does not say where leaf 'w' is",
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_metadata_that_lies_is_found_out(lie: str, dcp_folder: Path) -> None:
    change, message = LIES[lie]
    edit_metadata(dcp_folder, change)
    with pytest.raises((ForeignFileError, StateMismatchError), match=message):
        read_all(dcp_folder)


def nested_tuples(depth: int, twice: bool) -> bytes:
    """A tuple in a tuple in a tuple, as the key of a dict: hashing it would take 2**depth steps, or the whole stack."""
    each = b"q\x00h\x00\x86" if twice else b"\x85"
    return b"\x80\x04})" + each * depth + b"K\x01s."


@pytest.mark.parametrize(
    "raw",
    [
        nested_tuples(100, twice=True),
        nested_tuples(2**20, twice=False),
        b"\x80\x04" + b"]" * 2**20 + b".",
        b"\x80\x04]" + b"2" * 100 + b".",
        b"\x80\x04" + b"(" * 2**20 + b".",
        b"\x80\x04K\x01r\xff\xff\xff\xff.",
        b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f" + b"x.",
        b"\x80\x04\x8a\xff" + b"\x01" * 255 + b".",
        b"\x80\x04]\x94h\x00a.",
        b"",
        b".",
    ],
    ids=range(11),
)
def test_pickles_that_are_bombs_are_refused(raw: bytes, dcp_folder: Path) -> None:
    (dcp_folder / ".metadata").write_bytes(raw)
    with pytest.raises(ForeignFileError):
        open_source(dcp_folder)


def test_a_pickle_with_more_instructions_than_any_state_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptrun.formats.dcp.pickle_machine._MAX_OPERATIONS", 100)
    assert read_pickle(pickle.dumps([None] * 90), (), source="x") == [None] * 90
    with pytest.raises(ForeignFileError, match="more than 100 instructions"):
        read_pickle(pickle.dumps([None] * 100), (), source="x")


def lists_of_lists(depth: int) -> Any:
    value: Any = [0] * 10
    for _ in range(depth):
        value = [value] * 10
    return value


def test_values_that_are_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kilobyte of pickle that stands for 10**12 parts."""
    monkeypatch.setattr("ckptrun.formats.common.plain._MAX_PARTS", 10**6)
    bomb = lists_of_lists(12)
    torch.save({"w": torch.ones(1), "bomb": bomb}, tmp_path / "bomb.pt")
    dcp.save({"w": torch.ones(1), "bomb": (bomb,)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    for name in ("bomb.pt", "dcp"):
        with open_source(tmp_path / name) as source, pytest.raises(ForeignFileError, match=r"Leaf 'bomb'.*parts"):
            _ = source.leaves["bomb"].value


def test_states_that_are_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ckptrun.formats.common.flatten._MAX_ENTRIES", 100_000)
    value: Any = {"x": 1}
    deep: Any = 1
    for _ in range(30):
        value = {"a": value, "b": value}
    for _ in range(300):
        deep = {"a": deep}
    for name, bomb, message in (("wide", value, "more than 100000 entries"), ("deep", deep, "nested more than 200")):
        torch.save({"w": bomb}, tmp_path / name)
        with pytest.raises(ForeignFileError, match=message):
            open_source(tmp_path / name)


def test_a_list_in_itself_ends(tmp_path: Path) -> None:
    loop: list[Any] = [torch.ones(1)]
    loop.append(loop)
    torch.save({"loop": loop}, tmp_path / "loop.pt")
    with pytest.raises(ForeignFileError, match="nested more than"):
        open_source(tmp_path / "loop.pt")


def test_a_tensor_that_repeats_its_bytes_without_end_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1).expand(2**20, 2**20)}, tmp_path / "bomb.pt")
    with pytest.raises(ForeignFileError, match="repeats the 4 bytes of its storage"):
        open_source(tmp_path / "bomb.pt")


def test_compressed_archives_are_refused(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.pt", tmp_path / "packed.pt"
    torch.save({"w": torch.zeros(10**6)}, plain)
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, source.read(entry))
    assert packed.stat().st_size < 100_000
    with pytest.raises(CheckpointNotFoundError, match=r"content of a torch\.save file, but compressed"):
        open_source(packed)


def test_two_leaves_of_one_name_are_refused(tmp_path: Path) -> None:
    torch.save({"a": {"b": 1}, "a.b": 2}, tmp_path / "two.pt")
    with pytest.raises(ForeignFileError, match=r"two leaves that would both be named 'a\.b'"):
        open_source(tmp_path / "two.pt")


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.parametrize("kind", ["sparse", "quantized"])
def test_tensors_without_plain_bytes_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    bad = torch.eye(3).to_sparse() if kind == "sparse" else torch.quantize_per_tensor(torch.ones(2), 1, 0, torch.qint8)
    torch.save({"good": torch.ones(1), "bad": bad}, tmp_path / "bad.pt")
    with pytest.raises(UnsupportedLeafError, match="Leaf 'bad' is a tensor of"):
        open_source(tmp_path / "bad.pt")


def header(entries: dict[str, Any] | bytes, data: int = 0, length: int | None = None) -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(data)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


HEADERS: dict[str, tuple[bytes, str]] = {
    "short": (b"\x01\x02", "has 2 bytes"),
    "longer than the file": (header({}, length=100), "would have a header of 100"),
    "huge": (header({}, length=2**63), "would have a header of"),
    "no JSON": (header(b"{nope"), "damaged"),
    "deep": (header(b'{"a":' + b"[" * 10**5), "damaged"),
    "a list": (header(b"[]"), "no object"),
    "no entry": (header({"w": 3}), "the entry of 'w'"),
    "no dtype": (header({"w": entry(dtype="Q9")}, 8), "the entry of 'w'"),
    "a negative size": (header({"w": entry(shape=[-2])}, 8), "the entry of 'w'"),
    "a float size": (header({"w": entry(shape=[2.0])}, 8), "the entry of 'w'"),
    "three offsets": (header({"w": entry(offsets=[0, 4, 8])}, 8), "the entry of 'w'"),
    "too many bytes": (header({"w": entry(offsets=[0, 16])}, 16), "has the bytes 0 to 16"),
    "a huge shape": (header({"w": entry(shape=[2**40, 2**40], offsets=[0, 8])}, 8), "has the bytes"),
    "a huge empty shape": (header({"w": entry(shape=[0, 2**60, 2**60], offsets=[0, 0])}), "cannot have the shape"),
    "half an element": (header({"w": entry("F4", [3], [0, 2])}, 2), "half an element"),
    "a hole": (header({"w": entry(offsets=[4, 12])}, 12), "starts at byte 4 of the data"),
    "an overlap": (header({"w": entry(), "v": entry(offsets=[4, 12])}, 12), "starts at byte 4 of the data"),
    "bytes too many": (header({"w": entry()}, 9), "there are 9"),
    "cut": (header({"w": entry()}, 7), "there are 7"),
    "twice": (header(b'{"w":1,"w":2}'), "twice"),
    "metadata": (header({"__metadata__": {"a": 1}}), "does not map text to text"),
    "sharding": (header({"__metadata__": {"DCP_SHARDING_INFO": "{"}}), "DCP_SHARDING_INFO that is none"),
    "sharding list": (header({"__metadata__": {"DCP_SHARDING_INFO": "[]"}}), "DCP_SHARDING_INFO that is none"),
    "not placed": (
        header({"__metadata__": {"DCP_SHARDING_INFO": '{"w": {"saved_offsets": [-1]}}'}, "w": entry()}, 8),
        "does not say where its chunk of 'w' belongs",
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_damaged_safetensors_files_are_found_out(kind: str, tmp_path: Path) -> None:
    raw, message = HEADERS[kind]
    path = tmp_path / "x.safetensors"
    path.write_bytes(raw)
    with pytest.raises(ForeignFileError, match=message):
        read_all(path)


def test_shards_that_do_not_fit_are_found_out(tmp_path: Path) -> None:
    def sharding(offset: int) -> dict[str, str]:
        return {"DCP_SHARDING_INFO": json.dumps({"w": {"saved_offsets": [offset]}})}

    for name, offset, dtype in (("a", 0, torch.float32), ("b", 3, torch.float32), ("c", 6, torch.float16)):
        folder = tmp_path / name
        folder.mkdir()
        safetensors.torch.save_file({"w": torch.ones(4)}, folder / "0.safetensors", metadata=sharding(0))
        safetensors.torch.save_file(
            {"w": torch.ones(4, dtype=dtype)}, folder / "1.safetensors", metadata=sharding(offset)
        )
    for name, message in (("a", "overlap"), ("b", "overlap"), ("c", "different dtypes")):
        with pytest.raises(ForeignFileError, match=message):
            open_source(tmp_path / name)
    (tmp_path / "c/1.safetensors").unlink()
    safetensors.torch.save_file({"w": torch.ones(4)}, tmp_path / "c/1.safetensors", metadata=sharding(6))
    with open_source(tmp_path / "c") as source, pytest.raises(StateMismatchError, match="only partly"):
        source.read_rows("w", 0, 1)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"w": "../x.safetensors"}}, "only files of the folder itself"),
        ({"weight_map": {"w": "/x.safetensors"}}, "only files of the folder itself"),
        ({"weight_map": {"w": "gone.safetensors"}}, "is missing"),
        ({"weight_map": {"v": "0.safetensors"}}, "says that 'v' is in 0.safetensors, where it is not"),
        ({"weight_map": {"w": "0.safetensors", "v": "1.safetensors"}}, "does not name 'more'"),
        ({"weight_map": {"w": 3}}, "no weight_map"),
        ({"weight_map": []}, "no weight_map"),
        ([], "no weight_map"),
    ],
)
def test_an_index_that_lies_is_found_out(index: Any, message: str, tmp_path: Path) -> None:
    safetensors.torch.save_file({"w": torch.ones(4)}, tmp_path / "0.safetensors")
    safetensors.torch.save_file({"v": torch.ones(4), "more": torch.ones(1)}, tmp_path / "1.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ForeignFileError, match=message):
        open_source(tmp_path)


def test_a_flipped_bit_of_a_checkpoint_of_ckptrun_is_found(tmp_path: Path) -> None:
    folder = write("ckptrun", {"w": torch.ones(4)}, tmp_path / "saved")
    path = folder / "rank_00000.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    with open_source(folder) as source, pytest.raises(ShardFileError, match="damaged in leaf 'w'"):
        source.read_rows("w", 0, 4)


@pytest.mark.parametrize("seed", range(4))
def test_files_damaged_anywhere_give_errors_of_the_package(seed: int, tmp_path: Path) -> None:
    """Bits, bytes, cuts and insertions at random places of every kind of file: an error by name, or other bits."""
    saved = {"w": torch.randn(5, 3), "b": torch.randn(3).bfloat16(), "t": torch.randn(3, 4).t()}
    folder = write("dcp", {**saved, "n": 3, "l": [1, (2, "x")]}, tmp_path / "dcp")
    old = tmp_path / "old.pt"
    torch.save(saved, old, _use_new_zipfile_serialization=False)
    new = write("torch", {**saved, "n": 3}, tmp_path / "new.pt")
    file = write("safetensors", saved, tmp_path / "x.safetensors")
    targets = [(folder, folder / ".metadata"), (folder, folder / "__0_0.distcp"), (old, old), (new, new), (file, file)]
    generator = random.Random(seed)
    refused = 0
    for _ in range(120):
        source, path = generator.choice(targets)
        good = path.read_bytes()
        path.write_bytes(spoilt(good, generator))
        try:
            read_all(source)
        except CkptrunError:
            refused += 1
        finally:
            path.write_bytes(good)
    assert refused > 60


def spoilt(raw: bytes, generator: random.Random) -> bytes:
    spoilt = bytearray(raw)
    position = generator.randrange(min(len(raw), generator.choice([len(raw), 1000])))
    match generator.randrange(5):
        case 0:
            spoilt[position] ^= 1 << generator.randrange(8)
        case 1:
            spoilt[position] = generator.choice(b"\x00\xff\x80(}].Rb")
        case 2:
            del spoilt[position:]
        case 3:
            del spoilt[position : position + generator.randrange(1, 9)]
        case _:
            spoilt[position:position] = generator.randbytes(generator.randrange(1, 9))
    return bytes(spoilt)


@pytest.mark.parametrize("format", ["dcp", "torch"])
def test_a_flipped_bit_that_torch_would_load_is_found(format: str, tmp_path: Path) -> None:
    tensor = torch.arange(400_000.0)
    path = write(format, {"w": tensor}, tmp_path / "saved")
    file = path / "__0_0.distcp" if format == "dcp" else path
    raw = bytearray(file.read_bytes())
    position = raw.index(tensor.numpy().tobytes()) + 1_000_000
    raw[position] ^= 1
    file.write_bytes(raw)
    loaded = torch.load(io.BytesIO(raw), weights_only=True)
    assert not torch.equal(loaded if format == "dcp" else loaded["w"], tensor), "torch found it"
    with pytest.raises(ForeignFileError, match="data/0' has CRC-32"):
        read_all(path)


def test_a_flipped_bit_in_a_plain_value_is_found(tmp_path: Path) -> None:
    folder = write("dcp", {"lr": 0.1}, tmp_path / "dcp")
    path = folder / "__0_0.distcp"
    path.write_bytes(path.read_bytes().replace(struct.pack(">d", 0.1), struct.pack(">d", 0.2)))
    into: dict[str, Any] = {"lr": 0.0}
    dcp.load(into, checkpoint_id=folder, no_dist=True)
    assert into == {"lr": 0.2}, "DCP found it"
    with open_source(folder) as source, pytest.raises(ForeignFileError, match=r"data\.pkl' has CRC-32"):
        _ = source.leaves["lr"].value


def test_values_are_read_only_when_they_are_asked_for(dcp_folder: Path) -> None:
    path = dcp_folder / "__0_0.distcp"
    raw = path.read_bytes()
    path.write_bytes(bytes(1000) + raw[1000:])
    with open_source(dcp_folder) as source:
        assert bits(source.read_rows("w", 0, 4)) == bits(torch.arange(12.0).view(4, 3))
        with pytest.raises(ForeignFileError, match=r"Leaf 'n' of .*: no archive of torch\.save"):
            _ = source.leaves["n"].value


def test_a_tensor_of_another_endianness_is_refused(tmp_path: Path) -> None:
    folder = write("dcp", {"w": torch.ones(2)}, tmp_path / "dcp")
    path = folder / "__0_0.distcp"
    raw = path.read_bytes()
    little, big = b"little", b"big   "
    crcs = [struct.pack("<I", zlib.crc32(order)) for order in (little, big)]
    path.write_bytes(raw.replace(little, big).replace(*crcs))
    with open_source(folder) as source, pytest.raises(ForeignFileError, match="big-endian"):
        source.read_rows("w", 0, 2)
