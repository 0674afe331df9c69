"""Readers of every format give the leaves that were saved, bit for bit."""

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import fsspec
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed._shard.sharded_tensor.metadata import TensorProperties as OldProperties
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from ckptrun.errors import (
    CheckpointDamagedError,
    CheckpointNotFoundError,
)
from ckptrun.formats.open_source import open_source
from ckptrun.values import EmbeddedTensor
from tests.support.bits import all_bits, bits, random_tensor
from tests.support.foreign import (
    DTYPES,
    FORMATS,
    IN_SAFETENSORS,
    MARKS,
    edit_metadata,
    flat,
    only_tensors,
    read_all,
    sharded_in,
    sharded_truth,
    state,
    write,
)

pytestmark = MARKS


@pytest.mark.parametrize("format", FORMATS)
def test_every_leaf_of_every_dtype_is_read_bit_for_bit(format: str, tmp_path: Path) -> None:
    saved = state(IN_SAFETENSORS if format == "safetensors" else DTYPES)
    expected = only_tensors(saved) if format == "safetensors" else flat(saved)
    path = write(format, saved, tmp_path / "saved")
    assert all_bits(read_all(path)) == all_bits(expected)
    with open_source(path) as source:
        assert source.format == format
        assert source.address == str(path)
        for name, leaf in source.leaves.items():
            assert ".".join(map(str, leaf.path)) == name
            if leaf.is_tensor:
                assert (leaf.dtype, leaf.shape) == (str(expected[name].dtype)[6:], tuple(expected[name].shape))
                assert leaf.bytes == expected[name].numel() * expected[name].element_size()


@pytest.mark.parametrize("format", FORMATS)
def test_any_slab_is_read(format: str, tmp_path: Path) -> None:
    tensor = random_tensor(torch.bfloat16, (9, 3, 2))
    path = write(format, {"w": tensor, "zero_dim": tensor[0, 0, 0].clone()}, tmp_path / "saved")
    with open_source(path) as source:
        for first in range(10):
            for count in range(10 - first):
                slab = source.read_rows("w", first, count)
                assert slab.is_contiguous()
                assert bits(slab) == bits(tensor[first : first + count])
        assert bits(source.read_rows("zero_dim", 0, 1)) == bits(tensor[0, 0, 0].reshape(1))


@pytest.mark.distributed
@pytest.mark.parametrize("format", ["ckptrun", "dcp", "safetensors"])
def test_what_two_ranks_have_cut_is_put_together(format: str) -> None:
    path = sharded_in(format)
    found = read_all(path)
    expected = sharded_truth()
    assert all_bits(found) == all_bits(expected)
    with open_source(path) as source:
        for name in ("model.rows", "model.columns", "model.inner"):
            rows = expected[name].shape[0]
            for first in range(rows):
                for count in range(rows - first + 1):
                    assert bits(source.read_rows(name, first, count)) == bits(expected[name][first : first + count])


@pytest.mark.parametrize("format", ["ckptrun", "dcp", "torch"])
def test_views_and_strange_layouts_are_read_in_order(format: str, tmp_path: Path) -> None:
    matrix = random_tensor(torch.complex64, (4, 6))
    saved = {
        "transposed": matrix.t(),
        "column": matrix[:, 1],
        "steps": matrix[::2, ::3],
        "conjugated": matrix.conj(),
        "negated": torch._neg_view(random_tensor(torch.float32, (3, 2))),
        "expanded": torch.arange(3.0).expand(4, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(2, 2)),
    }
    path = write(format, saved, tmp_path / "saved")
    assert all_bits(read_all(path)) == all_bits(saved)
    with open_source(path) as source:
        assert bits(source.read_rows("channels_last", 1, 1)) == bits(saved["channels_last"][1:])
        assert bits(source.read_rows("transposed", 2, 3)) == bits(saved["transposed"][2:5])


def test_states_are_taken_apart_as_dcp_does_it(tmp_path: Path) -> None:
    tensor = torch.ones(2)
    saved = {
        "lists": [[1, 2], [[3]], {"a": 1}, [tensor, [4, [tensor]]], (tensor, {"b": 2}), []],
        "plain": [[1, 2], [[3], "x"]],
        "ordered": OrderedDict(a=1, b=[OrderedDict(c=2)]),
        "flat.name": tensor,
    }
    torch.save(saved, tmp_path / "saved.pt")
    found = read_all(tmp_path / "saved.pt")
    expected = flat(saved)
    assert list(found) == list(expected)
    # A tuple is one leaf, with the tensors in it.
    expected["lists.4"] = (EmbeddedTensor(dtype="float32", shape=(2,), content=tensor.numpy().tobytes()), {"b": 2})
    assert all_bits(found) == all_bits(expected)


def test_what_is_lost_on_the_way_to_leaves_is_said(tmp_path: Path) -> None:
    torch.save({"state": {0: {"a": torch.ones(1)}, 1: {}}, "n": 1}, tmp_path / "saved.pt")
    with open_source(tmp_path / "saved.pt") as source:
        assert list(source.leaves) == ["state.0.a", "n"]
        keys, empty = source.remarks
    assert "2 keys of dicts are no text" in keys
    assert "state.0, state.1" in keys
    assert "1 empty dicts hold no leaf" in empty


def test_tied_tensors_are_told(tmp_path: Path) -> None:
    weight = torch.randn(3, 3)
    saved = {"embed": weight, "head": weight, "view": weight[:2], "other": weight.clone()}
    for format in ("torch", "ckptrun"):
        with open_source(write(format, saved, tmp_path / format)) as source:
            assert source.shared == (("embed", "head"),)


def test_files_of_torch_before_zip_archives_are_read(tmp_path: Path) -> None:
    saved = state(["float32", "bfloat16", "bool", "int64"])
    torch.save(saved, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert all_bits(read_all(tmp_path / "old.pt")) == all_bits(flat(saved))


def test_a_bare_tensor_is_one_leaf(tmp_path: Path) -> None:
    torch.save(torch.arange(3), tmp_path / "one.pt")
    assert all_bits(read_all(tmp_path / "one.pt")) == all_bits({"value": torch.arange(3)})


def test_hugging_face_folders_are_read(tmp_path: Path) -> None:
    saved = {f"layers.{index}.weight": torch.randn(4, 4) for index in range(4)}
    mapping = {name: index // 2 + 1 for index, name in enumerate(saved)}
    writer = HuggingFaceStorageWriter(str(tmp_path / "hf"), fqn_to_index_mapping=mapping)
    dcp.save(saved, storage_writer=writer, no_dist=True)
    safetensors.torch.save_file({"left": torch.ones(1)}, tmp_path / "hf" / "adapter.safetensors")
    assert len(list((tmp_path / "hf").glob("model-*"))) == 2
    assert all_bits(read_all(tmp_path / "hf")) == all_bits(saved)
    with open_source(tmp_path / "hf") as source:
        assert "does not name adapter.safetensors" in source.remarks[0]


@pytest.mark.parametrize("format", FORMATS)
def test_any_url_is_read(format: str, tmp_path: Path) -> None:
    saved = state(["float32", "int64"])
    path = write(format, saved, tmp_path / "saved")
    memory = fsspec.filesystem("memory")
    memory.put(str(path), f"/sources/{format}", recursive=path.is_dir())
    expected = only_tensors(saved) if format == "safetensors" else flat(saved)
    assert all_bits(read_all(f"memory://sources/{format}")) == all_bits(expected)
    memory.rm("/sources", recursive=True)


def test_metadata_of_older_versions_is_read(tmp_path: Path) -> None:
    """Up to torch 2.2 another module had TensorProperties; Python 3.13 calls the class of paths by another name."""
    saved = {"w": torch.arange(6.0).view(2, 3), "n": 3}
    folder = write("dcp", saved, tmp_path / "saved")
    edit_metadata(folder, lambda metadata: setattr(metadata.state_dict_metadata["w"], "properties", OldProperties()))
    raw = (folder / ".metadata").read_bytes()
    assert b"torch.distributed._shard.sharded_tensor.metadata" in raw
    edited = pickle.dumps(pickle.loads(raw), protocol=2).replace(b"cpathlib\n", b"cpathlib._local\n")
    assert b"pathlib._local" in edited
    (folder / ".metadata").write_bytes(edited)
    assert all_bits(read_all(folder)) == all_bits(saved)


def test_what_is_no_checkpoint_is_said(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello, this is text")
    os.mkfifo(tmp_path / "pipe")
    for path, message in (
        (tmp_path / "gone", "does not exist"),
        (tmp_path / "notes.txt", "it is a text file, which begins with 'hello, this is text'"),
        (tmp_path / "pipe", "another kind of file"),
        (tmp_path, "there are: notes.txt, pipe"),
    ):
        with pytest.raises(CheckpointNotFoundError, match=message):
            open_source(path)


def test_of_a_run_the_newest_checkpoint_is_named(tmp_path: Path) -> None:
    for step in (3, 20):
        write("ckptrun", {"n": 1}, tmp_path / f"run/checkpoints/step_{step:08d}")
    for path in (tmp_path / "run", tmp_path / "run/checkpoints"):
        with pytest.raises(CheckpointNotFoundError, match=r"the newest is .*/run/checkpoints/step_00000020"):
            open_source(path)


def test_what_a_killed_save_left_is_no_checkpoint(tmp_path: Path) -> None:
    folder = write("ckptrun", {"w": torch.ones(2)}, tmp_path / "saved")
    (folder / "manifest.json").unlink()
    for path in (folder, folder / "rank_00000.safetensors"):
        with pytest.raises(CheckpointNotFoundError, match="is a shard file of ckptrun"):
            open_source(path)


def test_metadata_of_each_rank_is_not_supported_and_says_so(tmp_path: Path) -> None:
    folder = write("dcp", {"w": torch.ones(2)}, tmp_path / "saved")
    (folder / ".metadata").rename(folder / "__0.metadata")
    with pytest.raises(CheckpointNotFoundError, match="use_collectives=False"):
        open_source(folder)


def test_broken_files_are_damage_and_not_missing(tmp_path: Path) -> None:
    for name in ("zeros.pth", "cut.bin"):
        (tmp_path / name).write_bytes(bytes(1000))
        with pytest.raises(CheckpointDamagedError):
            open_source(tmp_path / name)


@pytest.mark.parametrize("format", ["dcp", "torch"])
def test_files_without_crc_are_read(format: str, tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = write(format, state(["float32"]), tmp_path / "saved")
    finally:
        torch.serialization.set_crc32_options(True)
    assert all_bits(read_all(path)) == all_bits(flat(state(["float32"])))


def test_bytes_are_plain_values(tmp_path: Path) -> None:
    buffer = io.BytesIO(b"abc").getvalue()
    assert read_all(write("dcp", {"b": buffer}, tmp_path / "dcp")) == {"b": b"abc"}


def test_tensors_come_without_grad_and_class(tmp_path: Path) -> None:
    torch.save({"w": torch.nn.Parameter(torch.ones(2))}, tmp_path / "p.pt")
    with open_source(tmp_path / "p.pt") as source:
        rows = source.read_rows("w", 0, 2)
    assert type(rows) is Tensor
    assert not rows.requires_grad
