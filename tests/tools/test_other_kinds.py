"""Whole files and folders of other programs are no damaged checkpoints: what they are is said, with exit code 2."""

import gzip
import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch

from tests.tools.run_tool import run_tool

FORBIDDEN = ("inline_container", "will likely succeed", "it is compressed", "weights_only", "damaged", "Traceback")
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 123456789\n"


def zipped(path: Path, **names: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, raw in names.items():
            archive.writestr(name, raw)


def write_script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("weights.pt"), io.BytesIO(b""))


def write_compressed(path: Path) -> None:
    torch.save({"w": torch.ones(3)}, path.with_suffix(".plain"))
    path.write_bytes(gzip.compress(path.with_suffix(".plain").read_bytes()))


def write_dcp_file(path: Path) -> None:
    stream = io.BytesIO()
    torch.save(torch.ones(3), stream)
    torch.save(torch.ones(4), stream)
    path.write_bytes(stream.getvalue())


def write_onnx(path: Path) -> None:
    producer = b"pytorch"
    path.write_bytes(b"\x08\x08\x12" + bytes([len(producer)]) + producer + b"\x1a\x052.1.0" + bytes(range(200)))


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "TorchScript": (
        "script.pt",
        lambda path: write_script(path),
        "a program of TorchScript",
    ),
    "npz": ("arrays.npz", lambda path: numpy.savez(path, a=numpy.arange(3)), "arrays of NumPy"),
    "npz by another name": (
        "arrays.pt",
        lambda path: zipped(path, **{"a.npy": b"\x93NUMPY"}),
        "arrays of NumPy",
    ),
    "npy": ("array.npy", lambda path: numpy.save(path, numpy.arange(3)), "a NumPy array"),
    "pickle": ("plain.pkl", lambda path: path.write_bytes(pickle.dumps({"a": 1})), "a pickle that torch.save has not"),
    "pickle in text": (
        "plain.pt",
        lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=0)),
        "a pickle that torch.save has not",
    ),
    "pickle of protocol 2": (
        "plain.bin",
        lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)),
        "a pickle that torch.save has not",
    ),
    "LFS pointer": ("pointer.bin", lambda path: path.write_bytes(POINTER), "a Git LFS pointer"),
    "LFS pointer to safetensors": ("p.safetensors", lambda path: path.write_bytes(POINTER), "a Git LFS pointer"),
    "web page": ("page.ckpt", lambda path: path.write_text("\n <!DOCTYPE html><html>404</html>"), "a web page"),
    "JSON": ("config.json", lambda path: path.write_text('{"hidden_size": 8}'), "a JSON file"),
    "JSON named as tensors": ("w.safetensors", lambda path: path.write_text('{"error": "gated"}'), "a JSON file"),
    "text": ("notes.pt", lambda path: path.write_text("Entry not found"), "begins with 'Entry not found'"),
    "gzip": ("state.pt.gz", write_compressed, "packed with gzip"),
    "tar": ("state.tar", write_tar, "a tar archive"),
    "zip": ("state.zip", lambda path: zipped(path, **{"model.pt": b"x"}), "it holds model.pt"),
    "GGUF": ("model.gguf", lambda path: path.write_bytes(b"GGUF\x03\0\0\0" + bytes(40)), "a GGUF file"),
    "ONNX": ("model.onnx", write_onnx, "an ONNX model"),
    "ONNX by another name": ("model.bin", write_onnx, "an ONNX model"),
    "Keras": ("model.h5", lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90)), "an HDF5 file"),
    "Keras 3": ("model.keras", lambda path: zipped(path, **{"model.weights.h5": b"", "config.json": b""}), "Keras"),
    "flax": (
        "flax_model.msgpack",
        lambda path: path.write_bytes(b"\x81\xa6params\x81\xa1w\xc7\x10\x01" + bytes(16)),
        "MessagePack",
    ),
    "table of TensorFlow": (
        "model.ckpt",
        lambda path: path.write_bytes(bytes(range(64)) + struct.pack("<Q", 0xDB4775248B80FB57)),
        "a checkpoint of TensorFlow",
    ),
    "empty": ("empty.pt", lambda path: path.write_bytes(b""), "an empty file, 0 bytes"),
    "file of DCP": ("__0_0.distcp", write_dcp_file, "Name its folder"),
    "file of DCP by another name": ("file.pt", write_dcp_file, "name its folder"),
    "pickle protocol": (
        "p4.pt",
        lambda path: torch.save({"w": torch.ones(2)}, path, pickle_protocol=4),
        "saved with pickle protocol 4",
    ),
    "pickle protocol, before archives": (
        "p4.pt",
        lambda path: torch.save({}, path, pickle_protocol=4, _use_new_zipfile_serialization=False),
        "saved with pickle protocol 4",
    ),
    "a module": ("module.pt", lambda path: torch.save(torch.nn.Linear(2, 2), path), "torch.nn.modules.linear.Linear"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_another_kind_is_told_by_its_bytes(kind: str, tmp_path: Path) -> None:
    name, write, word = FILES[kind]
    write(tmp_path / name)
    for command in (
        ("convert", tmp_path / name, tmp_path / "out", "--to", "ckptrun"),
        ("diff", *[tmp_path / name] * 2),
    ):
        ended = run_tool(*command)
        assert ended.code == 2, ended
        assert word in ended.errors
        assert not [word for word in FORBIDDEN if word in ended.errors], ended.errors
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("names", "word"),
    [
        (["_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt", "d"], "Orbax"),
        (["checkpoint", "model.ckpt-3.index", "model.ckpt-3.data-00000-of-00001"], "TensorFlow"),
        (["saved_model.pb", "variables"], "SavedModel"),
        ([".zgroup", "w"], "Zarr"),
        (["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"], "DeepSpeed"),
        (["config.json", "pytorch_model.bin"], "name a file, such as"),
    ],
)
def test_a_folder_of_another_kind_is_told_by_its_names(names: list[str], word: str, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    ended = run_tool("convert", tmp_path, tmp_path.parent / "out", "--to", "torch")
    assert ended.code == 2, ended
    assert word in ended.errors


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_that_were_not_fetched_are_told_in_a_folder_too(suffix: str, tmp_path: Path) -> None:
    files = [f"model-0000{number}-of-00002.{suffix}" for number in (1, 2)]
    for file in files:
        (tmp_path / file).write_bytes(POINTER)
    index = {"weight_map": {"a": files[0], "b": files[1]}}
    (tmp_path / f"model.{suffix}.index.json").write_text(json.dumps(index))
    ended = run_tool("diff", tmp_path, tmp_path)
    assert (ended.code, "git lfs pull" in ended.errors) == (2, True), ended


def test_what_is_damaged_is_still_told_as_damaged(tmp_path: Path) -> None:
    torch.save({"w": torch.arange(1000.0)}, tmp_path / "cut.pt")
    safetensors.torch.save_file({"w": torch.arange(1000.0)}, tmp_path / "cut.safetensors")
    (tmp_path / "zeros.pt").write_bytes(bytes(1000))
    for name in ("cut.pt", "cut.safetensors"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-700])
    for name in ("cut.pt", "cut.safetensors", "zeros.pt"):
        ended = run_tool("diff", tmp_path / name, tmp_path / name)
        assert ended.code == 3, (name, ended)
        assert "weights_only" not in ended.errors
