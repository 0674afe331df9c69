"""Every format becomes every other, bit for bit, as tools that know nothing of ckptrun read it; or nothing appears."""

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import fsspec
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from ckptrun.engine.commit import hold_save, list_leftovers
from ckptrun.engine.layout import new_save_id
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import read_manifest
from ckptrun.engine.storage import ShardReader, ShardWriter
from ckptrun.formats.common.plain import save_to
from tests.support.bits import all_bits, bits, flip, random_tensor
from tests.support.foreign import (
    DTYPES,
    FORMATS,
    IN_SAFETENSORS,
    NOT_IN_SAFETENSORS,
    Harm,
    edit_metadata,
    flat,
    only_tensors,
    read_bits,
    sharded_in,
    sharded_truth,
    state,
    write,
)
from tests.support.fork_server import CONTEXT
from tests.tools.run_tool import ROOT, run_tool, start_tool

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
]


def convert(*argv: object) -> str:
    """Convert, with success; return what it printed."""
    ended = run_tool("convert", *argv)
    assert ended.code == 0, ended.errors
    return ended.output


def refused(*argv: object, code: int) -> str:
    """Convert, with an error of one line; return it."""
    ended = run_tool("convert", *argv)
    assert ended.code == code, ended
    assert ended.errors.startswith("ckptrun: ")
    assert ended.errors.count("\n") == 1
    assert not ended.output
    return ended.errors


# Every pair


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("format", FORMATS)
def test_every_format_becomes_every_other_bit_for_bit(format: str, to: str, tmp_path: Path) -> None:
    saved = state(IN_SAFETENSORS if "safetensors" in (format, to) else DTYPES)
    source, target = write(format, saved, tmp_path / "source"), tmp_path / "target"
    output = convert(source, target, "--to", to)
    expected = only_tensors(saved) if "safetensors" in (format, to) else flat(saved)
    found = read_bits(to, target)
    if to == "safetensors" and format == "safetensors":
        assert "left out" not in output
    assert found == {name: as_read(to, leaf) for name, leaf in expected.items()}
    assert "read back, equal bit by bit" in output
    assert names_in(tmp_path) == ["source", "target"]


def as_read(to: str, leaf: Any) -> Any:
    """What ``read_bits`` shows of a leaf: the reader of docs/format.md decodes plain values only as far as JSON goes."""
    if to != "ckptrun" or isinstance(leaf, Tensor):
        return all_bits(leaf)
    return all_bits(in_json(leaf))


def in_json(value: Any) -> Any:
    """How a plain value stands in a manifest, by docs/format.md section 4."""
    if isinstance(value, tuple):
        return {"$tuple": [in_json(item) for item in value]}
    if isinstance(value, list):
        return [in_json(item) for item in value]
    if isinstance(value, bytes):
        return {"$bytes": "AP8="}
    return {"$nan": "7ff8000000000000"} if value != value else value


@pytest.mark.parametrize("format", ["ckptrun", "dcp", "torch"])
def test_a_state_is_nested_again_for_torch(format: str, tmp_path: Path) -> None:
    saved = state()
    convert(write(format, saved, tmp_path / "source"), tmp_path / "target", "--to", "torch")
    # torch's own optimizers want one, empty or not.
    saved["optimizer"]["state"] = {}
    assert all_bits(torch.load(tmp_path / "target", weights_only=True)) == all_bits(saved)


@pytest.mark.distributed
@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("format", ["ckptrun", "dcp", "safetensors"])
def test_what_two_ranks_have_cut_becomes_whole(format: str, to: str, tmp_path: Path) -> None:
    convert(sharded_in(format), tmp_path / "target", "--to", to)
    assert read_bits(to, tmp_path / "target") == all_bits(sharded_truth())


def test_dcp_loads_what_was_converted_into_tensors_of_its_own(tmp_path: Path) -> None:
    saved = {
        "model": {"w": random_tensor(torch.bfloat16, (5, 3))},
        "groups": [{"lr": 0.5}, {"m": torch.ones(2)}],
        "n": 3,
    }
    source = write("torch", saved, tmp_path / "source")
    for to, reader in (("dcp", dcp.FileSystemReader), ("ckptrun", ShardReader)):
        convert(source, tmp_path / to, "--to", to)
        into: dict[str, Any] = {
            "model": {"w": torch.zeros(5, 3, dtype=torch.bfloat16)},
            "groups": [{"lr": 0.0}, {"m": torch.zeros(2)}],
            "n": 0,
        }
        dcp.load(into, storage_reader=reader(tmp_path / to), no_dist=True)
        assert all_bits(into) == all_bits(saved)


def test_dcp_folders_say_where_they_are(tmp_path: Path) -> None:
    convert(write("torch", {"w": torch.ones(1)}, tmp_path / "source"), tmp_path / "target", "--to", "dcp")
    metadata = dcp.FileSystemReader(tmp_path / "target").read_metadata()
    assert metadata.storage_meta.checkpoint_id == str(tmp_path / "target")
    assert metadata.planner_data == {"w": ("w",)}


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    source = write("torch", {"model": {"embed": weight, "head": weight, "other": weight + 1}}, tmp_path / "a.pt")
    convert(source, tmp_path / "ckptrun", "--to", "ckptrun")
    assert read_manifest(tmp_path / "ckptrun").shared == (("model.embed", "model.head"),)
    convert(tmp_path / "ckptrun", tmp_path / "b.pt", "--to", "torch", "--only", "model")
    back = torch.load(tmp_path / "b.pt", weights_only=True)
    assert back["embed"].data_ptr() == back["head"].data_ptr() != back["other"].data_ptr()
    assert bits(back["head"]) == bits(weight)
    assert (tmp_path / "b.pt").stat().st_size < 100_000


def test_what_a_checkpoint_says_of_its_run_is_kept(tmp_path: Path) -> None:
    run = {"step": 7, "world_size": 1, "mesh": {"shard": 1}}
    writer = ShardWriter(tmp_path / "a", run=run, digests={"w": "abc", "v": "def"})
    dcp.save({"w": torch.ones(2), "v": torch.ones(2).int()}, storage_writer=writer, no_dist=True)
    convert(tmp_path / "a", tmp_path / "b", "--to", "ckptrun", "--dtype", "bf16")
    manifest = read_manifest(tmp_path / "b")
    assert manifest.run == run
    assert {name: leaf.digest for name, leaf in manifest.leaves.items()} == {"w": None, "v": "def"}


def test_a_state_without_tensors_is_converted(tmp_path: Path) -> None:
    source = write("torch", {"n": 1, "l": [1, 2]}, tmp_path / "a.pt")
    for to in ("ckptrun", "dcp", "torch"):
        convert(source, tmp_path / to, "--to", to)
        assert read_bits(to, tmp_path / to) == all_bits({"n": 1, "l": [1, 2]})
    assert "holds no tensor to write" in refused(source, tmp_path / "x", "--to", "safetensors", code=2)


def test_values_with_tensors_in_tuples_go_where_they_can(tmp_path: Path) -> None:
    saved = {"pair": (torch.ones(2), 1), "set": {1, 2}}
    source = write("torch", saved, tmp_path / "a.pt")
    convert(source, tmp_path / "b.pt", "--to", "torch")
    convert(source, tmp_path / "dcp", "--to", "dcp")
    assert all_bits(torch.load(tmp_path / "b.pt", weights_only=True)) == all_bits(saved)
    assert read_bits("dcp", tmp_path / "dcp") == all_bits(saved)
    assert "Leaf 'set' is a builtins.set" in refused(source, tmp_path / "c", "--to", "ckptrun", code=2)
    pair = {"pair": saved["pair"]}
    convert(write("torch", pair, tmp_path / "pair.pt"), tmp_path / "c", "--to", "ckptrun")
    convert(tmp_path / "c", tmp_path / "again.pt", "--to", "torch")
    assert all_bits(torch.load(tmp_path / "again.pt", weights_only=True)) == all_bits(pair)


# What is chosen


@pytest.fixture
def nested(tmp_path: Path) -> Path:
    model = {"blocks.0.w": torch.ones(2, 2), "blocks.1": {"w": torch.zeros(3)}, "n": 1}
    return write("torch", {"model": model, "model_ema": {"w": torch.ones(1)}, "step": 3}, tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("to", "options", "names"),
    [
        ("torch", [], ["blocks.0.w", "blocks.1.w", "n"]),
        ("torch", ["--keep-prefix"], ["model.blocks.0.w", "model.blocks.1.w", "model.n"]),
        ("safetensors", [], ["blocks.0.w", "blocks.1.w"]),
        ("safetensors", ["--keep-prefix"], ["model.blocks.0.w", "model.blocks.1.w"]),
        ("dcp", [], ["model.blocks.0.w", "model.blocks.1.w", "model.n"]),
        ("ckptrun", [], ["model.blocks.0.w", "model.blocks.1.w", "model.n"]),
    ],
)
def test_one_component_is_chosen(to: str, options: list[str], names: list[str], nested: Path, tmp_path: Path) -> None:
    convert(nested, tmp_path / "out", "--to", to, "--only", "model", *options)
    assert sorted(read_bits(to, tmp_path / "out")) == names


@pytest.mark.parametrize(
    ("only", "state"),
    [
        ("model", {"blocks.0.w": torch.ones(2, 2), "blocks.1": {"w": torch.zeros(3)}, "n": 1}),
        ("model.blocks", {"0.w": torch.ones(2, 2), "1": {"w": torch.zeros(3)}}),
        ("model.blocks.1", {"w": torch.zeros(3)}),
        ("model.blocks.0.w", {"w": torch.ones(2, 2)}),
        ("step", {"step": 3}),
    ],
)
def test_a_prefix_is_taken_off_wherever_it_ends(only: str, state: Any, nested: Path, tmp_path: Path) -> None:
    convert(nested, tmp_path / "out", "--to", "torch", "--only", only)
    assert all_bits(torch.load(tmp_path / "out", weights_only=True)) == all_bits(state)


def test_an_unknown_name_is_refused_with_what_there_is(nested: Path, tmp_path: Path) -> None:
    error = refused(nested, tmp_path / "out", "--to", "torch", "--only", "modell", code=2)
    assert "holds no leaf 'modell' and nothing under that name; at the top there are: model, model_ema, step" in error


def test_plain_values_left_out_are_counted_and_listed(nested: Path, tmp_path: Path) -> None:
    output = convert(nested, tmp_path / "out", "--to", "safetensors")
    assert re.search(r"left out +2 plain values, which safetensors cannot hold: model\.n, step", output)
    document = json.loads(convert(nested, tmp_path / "out2", "--to", "safetensors", "--json"))
    assert document["left_out"] == ["model.n", "step"]
    assert (document["tensors"], document["values"], document["files"]) == (3, 0, 1)


@pytest.mark.parametrize(("dtype", "name"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
@pytest.mark.parametrize("to", FORMATS)
def test_floats_are_converted_and_nothing_else(dtype: str, name: str, to: str, tmp_path: Path) -> None:
    saved = state(IN_SAFETENSORS)["model"]
    source = write("torch", saved, tmp_path / "a.pt")
    document = json.loads(convert(source, tmp_path / "out", "--to", to, "--dtype", dtype, "--json"))
    floats = ("float64", "float32", "float16", "bfloat16")
    wanted = {
        key: value.to(getattr(torch, name)) if str(value.dtype)[6:] in floats else value for key, value in saved.items()
    }
    assert read_bits(to, tmp_path / "out") == all_bits(wanted)
    assert document["converted"] == sum(wanted[key].dtype is not saved[key].dtype for key in saved)


def test_what_a_smaller_dtype_cannot_hold_is_counted(tmp_path: Path) -> None:
    tensor = torch.tensor([1.0, 1e10, -1e10, float("inf"), float("nan"), 1e-30, 0.0])
    source = write("torch", {"w": tensor}, tmp_path / "a.pt")
    output = convert(source, tmp_path / "out", "--to", "torch", "--dtype", "fp16")
    assert "1 tensors converted to float16; 2 numbers became infinite and 1 numbers became 0" in output
    assert ";" not in convert(source, tmp_path / "out2", "--to", "torch", "--dtype", "bf16").partition("dtype")[2]


# Shards as Hugging Face tools expect them


def test_shards_are_cut_named_and_listed_in_an_index(tmp_path: Path) -> None:
    saved = {f"layers.{index}.weight": torch.full((10, 10), float(index)) for index in range(5)}
    saved["large"] = torch.ones(1000)
    saved["last"] = torch.ones(3)
    source = write("torch", saved, tmp_path / "a.pt")
    convert(source, tmp_path / "out", "--to", "safetensors", "--max-shard-size", "1KB")
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    shards = [f"model-0000{index}-of-00004.safetensors" for index in range(1, 5)]
    assert files == [*shards, "model.safetensors.index.json"]
    # As huggingface_hub does it: what does not fit a shard gets one of its own, and the one that is filled stays open.
    placed = [["layers.0.weight", "layers.1.weight"], ["layers.2.weight", "layers.3.weight"], ["large"]]
    placed.append(["layers.4.weight", "last"])
    weight_map = {name: shard for shard, names in zip(shards, placed, strict=True) for name in names}
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index == {"metadata": {"total_size": 5 * 400 + 4000 + 12}, "weight_map": weight_map}
    assert list(index["weight_map"]) == sorted(weight_map)
    assert read_bits("safetensors", tmp_path / "out") == all_bits(saved)
    for shard in shards:
        loaded = safetensors.torch.load_file(tmp_path / "out" / shard)
        assert loaded.keys() == {name for name, file in weight_map.items() if file == shard}


def test_a_model_that_fits_one_shard_has_no_index(tmp_path: Path) -> None:
    source = write("torch", {"w": torch.ones(10)}, tmp_path / "a.pt")
    convert(source, tmp_path / "out", "--to", "safetensors", "--max-shard-size", "5GB")
    assert names_in(tmp_path / "out") == ["model.safetensors"]
    assert read_bits("safetensors", tmp_path / "out") == all_bits({"w": torch.ones(10)})


@pytest.mark.parametrize(
    ("text", "size"), [("5GB", 5 * 10**9), ("1.5 MiB", 3 * 2**19), ("10kb", 10_000), ("7", 7), ("2G", 2 * 10**9)]
)
def test_sizes_are_understood(text: str, size: int) -> None:
    from ckptrun.tools.convert_command import _parse_size

    assert _parse_size(text) == size


@pytest.mark.parametrize("text", ["5XB", "0", "-1", "", "1e9", "0.1"])
def test_sizes_that_are_none_are_refused(text: str, tmp_path: Path) -> None:
    ended = run_tool("convert", tmp_path, tmp_path / "x", "--to", "safetensors", f"--max-shard-size={text}")
    assert ended.code == 2
    assert "is no size such as 5GB" in ended.errors


def test_a_file_is_what_safetensors_itself_would_accept(tmp_path: Path) -> None:
    source = write("torch", state(IN_SAFETENSORS), tmp_path / "a.pt")
    convert(source, tmp_path / "x.safetensors", "--to", "safetensors")
    raw = (tmp_path / "x.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    assert (8 + length) % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "pt"}
    ends = sorted(entry["data_offsets"] for entry in header.values())
    assert [begin for begin, _ in ends] == [0, *[end for _, end in ends[:-1]]]
    assert ends[-1][1] == len(raw) - 8 - length


# What may be replaced


@pytest.mark.parametrize("to", FORMATS)
def test_what_exists_is_refused_and_left_alone(to: str, tmp_path: Path) -> None:
    source = write("torch", {"w": torch.ones(2)}, tmp_path / "a.pt")
    convert(source, tmp_path / "out", "--to", to)
    before = tree(tmp_path)
    assert "pass --overwrite" in refused(source, tmp_path / "out", "--to", to, code=2)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("before", ["ckptrun", "dcp", "torch", "safetensors", "shards"])
@pytest.mark.parametrize("to", ["ckptrun", "dcp", "torch", "safetensors", "shards"])
def test_a_checkpoint_is_replaced_when_asked_for(before: str, to: str, tmp_path: Path) -> None:
    options = {"shards": ["safetensors", "--max-shard-size", "8"]}
    one = write("torch", {"w": torch.ones(2), "v": torch.ones(2)}, tmp_path / "a.pt")
    other = write("torch", {"w": torch.zeros(3)}, tmp_path / "b.pt")
    convert(one, tmp_path / "out", "--to", *options.get(before, [before]))
    arguments = (other, tmp_path / "out", "--overwrite", "--to", *options.get(to, [to]))
    if (before in ("torch", "safetensors")) == (to in ("torch", "safetensors")):
        convert(*arguments)
        assert read_bits("safetensors" if to == "shards" else to, tmp_path / "out") == all_bits({"w": torch.zeros(3)})
    else:
        was = tree(tmp_path)
        assert re.search(r"is a (file|folder), and a (folder|file) would be", refused(*arguments, code=2))
        assert tree(tmp_path) == was
    assert names_in(tmp_path) == ["a.pt", "b.pt", "out"]


@pytest.mark.parametrize("there", ["ckptrun", "dcp"])
@pytest.mark.parametrize("to", ["ckptrun", "dcp"])
def test_a_folder_with_other_things_is_never_replaced(there: str, to: str, tmp_path: Path) -> None:
    source = write("torch", {"w": torch.ones(2)}, tmp_path / "a.pt")
    convert(source, tmp_path / "out", "--to", there)
    (tmp_path / "out/tokenizer.json").write_text("{}")
    before = tree(tmp_path)
    error = refused(source, tmp_path / "out", "--to", to, "--overwrite", code=2)
    assert "holds more than a checkpoint: tokenizer.json" in error
    assert tree(tmp_path) == before


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    source = write("torch", {"w": torch.ones(2)}, tmp_path / "a.pt")
    for to in ("ckptrun", "dcp"):
        (tmp_path / to).mkdir()
        convert(source, tmp_path / to, "--to", to)
        assert read_bits(to, tmp_path / to) == all_bits({"w": torch.ones(2)})


def test_parents_of_the_target_are_made(tmp_path: Path) -> None:
    source = write("torch", {"w": torch.ones(2)}, tmp_path / "a.pt")
    for to in FORMATS:
        convert(source, tmp_path / "new" / to / "deep", "--to", to)
        assert names_in(tmp_path / "new" / to) == ["deep"]


def test_source_and_target_may_not_lie_in_each_other(tmp_path: Path) -> None:
    source = write("dcp", {"w": torch.ones(2)}, tmp_path / "a/dcp")
    (tmp_path / "link").symlink_to(source)
    for target in (source, source / "x", tmp_path / "a", tmp_path / "link/x", tmp_path / "b/../a/dcp"):
        error = refused(source, target, "--to", "safetensors", "--overwrite", code=2)
        assert "one lies in the other" in error
    assert read_bits("dcp", source) == all_bits({"w": torch.ones(2)})


def test_options_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    source = write("torch", {"w": torch.ones(2)}, tmp_path / "a.pt")
    for options, message in (
        (["--to", "dcp", "--max-shard-size", "5GB"], "--max-shard-size is for --to safetensors"),
        (["--to", "torch", "--keep-prefix"], "--keep-prefix says what becomes of the NAME of --only"),
    ):
        assert message in refused(source, tmp_path / "x", *options, code=2)
    assert run_tool("convert", source, tmp_path / "x", "--to", "numpy").code == 2
    assert "is no checkpoint" in refused(tmp_path / "none", tmp_path / "x", "--to", "dcp", code=2)
    assert names_in(tmp_path) == ["a.pt"]


def names_in(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file under a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Damage, faults, kills


@pytest.mark.parametrize("to", FORMATS)
def test_a_damaged_source_leaves_nothing_behind(to: str, tmp_path: Path) -> None:
    saved = {"v": torch.ones(300_000), "w": torch.ones(10)}
    sources = {format: write(format, saved, tmp_path / format) for format in ("ckptrun", "dcp", "torch")}
    flip(sources["ckptrun"] / "rank_00000.safetensors", -5)
    flip(sources["dcp"] / "__0_0.distcp", 100_000)
    flip(sources["torch"], 100_000)
    for format, source in sources.items():
        error = refused(source, tmp_path / "out" / format, "--to", to, code=3)
        assert "damaged" in error
    assert not (tmp_path / "out").exists() or not names_in(tmp_path / "out")


@pytest.mark.parametrize("to", FORMATS)
def test_what_is_read_back_differently_is_not_put_in_place(
    to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bit changes on storage between writing and reading back, below everything that checks."""
    source = write("torch", {"w": torch.ones(1000)}, tmp_path / "a.pt")
    spoil_on_storage(monkeypatch)
    error = refused(source, tmp_path / "out", "--to", to, code=3)
    assert re.search("differently|damaged|missing", error)
    assert names_in(tmp_path) == ["a.pt"]
    if to == "safetensors":
        convert(source, tmp_path / "out", "--to", to, "--no-check")
        assert read_bits(to, tmp_path / "out") != all_bits({"w": torch.ones(1000)})


def spoil_on_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the last bytes of tensor data in what was written, before it is opened again."""
    from ckptrun.formats.ckptrun_format import writer as ckptrun_target
    from ckptrun.tools import convert as module

    one = torch.ones(1).numpy().tobytes()

    def spoil(folder: Path) -> None:
        for path in [*folder.glob("*.tmp-*"), *folder.glob("*.tmp-*/*")]:
            if path.is_file() and path.suffix != ".lock" and one * 1000 in path.read_bytes():
                raw = path.read_bytes()
                position = raw.index(one * 1000)
                path.write_bytes(raw[: position + 2000] + b"\x7f" + raw[position + 2001 :])

    def spoiling(function: Callable[..., Any], folder_of: Callable[..., Path]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            written = function(*args, **options)
            spoil(folder_of(*args))
            return written

        return call

    monkeypatch.setattr(
        module, "_write_beside", spoiling(module._write_beside, lambda _, working, *__: Path(working.parent.path))
    )
    monkeypatch.setattr(
        ckptrun_target,
        "write_files",
        spoiling(ckptrun_target.write_files, lambda working, *_: Path(working.parent.path)),
    )


@pytest.mark.parametrize("to", FORMATS)
def test_hostile_sources_run_nothing_and_end_in_one_line(to: str, tmp_path: Path) -> None:
    marker = tmp_path / "harm_was_done"
    folder = write("dcp", {"w": torch.ones(2)}, tmp_path / "dcp")
    edit_metadata(folder, lambda metadata: setattr(metadata, "planner_data", Harm(marker)))
    torch.save({"w": Harm(marker)}, tmp_path / "bad.pt")
    with_value = write("dcp", {"w": torch.ones(2), "bad": Harm(marker)}, tmp_path / "value")
    assert "asks for 'posix.system'" in refused(folder, tmp_path / "out", "--to", to, code=3)
    assert "holds objects of posix.system" in refused(tmp_path / "bad.pt", tmp_path / "out", "--to", to, code=2)
    if to == "safetensors":
        convert(with_value, tmp_path / "out", "--to", to)
        assert read_bits(to, tmp_path / "out") == all_bits({"w": torch.ones(2)})
    else:
        assert "Leaf 'bad' of" in refused(with_value, tmp_path / "out", "--to", to, code=2)
        assert not (tmp_path / "out").exists()
    assert not marker.exists()


def test_dtypes_that_safetensors_lacks_are_refused_by_name(tmp_path: Path) -> None:
    for name in NOT_IN_SAFETENSORS:
        source = write("torch", {"w": torch.zeros(2, dtype=getattr(torch, name))}, tmp_path / name)
        error = refused(source, tmp_path / "out", "--to", "safetensors", code=2)
        assert f"Leaf 'w' is {name} of shape [2], which safetensors files cannot hold" in error


def test_remote_places_are_written_as_ckptrun_only(tmp_path: Path) -> None:
    source = write("torch", state(), tmp_path / "a.pt")
    convert(source, "memory://converted/c", "--to", "ckptrun")
    convert("memory://converted/c", tmp_path / "b.pt", "--to", "torch")
    expected = state()
    expected["optimizer"]["state"] = {}
    assert all_bits(torch.load(tmp_path / "b.pt", weights_only=True)) == all_bits(expected)
    assert "is committed" in refused(source, "memory://converted/c", "--to", "ckptrun", code=2)
    assert "is not local" in refused(source, "memory://converted/x", "--to", "dcp", code=2)
    names = [path.rpartition("/")[2] for path in fsspec.filesystem("memory").ls("/converted/c", detail=False)]
    assert sorted(re.sub(r"[0-9a-f]{32}", "ID", name) for name in names) == [
        "manifest.json",
        "rank_00000.ID.safetensors",
    ]
    fsspec.filesystem("memory").rm("/converted", recursive=True)


def test_a_full_disk_is_said_as_it_is() -> None:
    with Path("/dev/full").open("wb", buffering=0) as stream, pytest.raises(OSError, match="No space left"):
        save_to(stream, {"w": torch.zeros(100_000)})


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """240 MB, one tensor of 160."""
    folder = tmp_path_factory.mktemp("large")
    tensors = {"large": torch.ones(40_000_000), **{f"w{index}": torch.ones(2_000_000) for index in range(10)}}
    return write("safetensors", tensors, folder / "large.safetensors")


@pytest.mark.crash
@pytest.mark.parametrize("is_there", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("to", FORMATS)
def test_a_kill_in_the_middle_leaves_no_half_target(to: str, is_there: bool, large: Path, tmp_path: Path) -> None:
    small = write("torch", {"w": torch.ones(2)}, tmp_path / "a.pt")
    target = tmp_path / "out"
    if is_there:
        convert(small, target, "--to", to)
    before = tree(tmp_path)
    process = CONTEXT.Process(target=run_tool, args=("convert", large, target, "--to", to, "--overwrite"))
    process.start()
    kill_while_writing(process, tmp_path)
    left = [name for name in names_in(tmp_path) if ".tmp-" in name]
    assert left, "it was killed too early"
    assert {name: raw for name, raw in tree(tmp_path).items() if ".tmp-" not in name} == before
    assert list_leftovers(tmp_path), "they are not known as leftovers"
    convert(small, target, "--to", to, *(["--overwrite"] if is_there else []))
    assert names_in(tmp_path) == ["a.pt", "out"]
    assert read_bits(to, target) == all_bits({"w": torch.ones(2)})


def kill_while_writing(process: BaseProcess, folder: Path) -> None:
    """Kill it once some bytes lie in what is not yet the target."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = [path for path in [*folder.glob("out.tmp-*"), *folder.glob("out.tmp-*/*")] if path.suffix != ".lock"]
        if any(path.is_file() and path.stat().st_size for path in found):
            break
        assert process.is_alive(), "it ended before it was killed"
        time.sleep(0.002)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize("to", ["dcp", "torch"])
def test_what_another_process_writes_is_left_alone(to: str, tmp_path: Path) -> None:
    source = write("torch", {"w": torch.ones(2)}, tmp_path / "a.pt")
    save_id = new_save_id()
    release = hold_save(locate(tmp_path / "out"), save_id)
    other = tmp_path / f"out.tmp-{save_id}"
    other.mkdir()
    convert(source, tmp_path / "out", "--to", to)
    assert other.is_dir()
    release()
    convert(source, tmp_path / "out", "--to", to, "--overwrite")
    assert names_in(tmp_path) == ["a.pt", "out"]


def test_a_kill_between_two_renames_is_undone(tmp_path: Path) -> None:
    source = write("torch", {"w": torch.ones(2)}, tmp_path / "a.pt")
    convert(source, tmp_path / "out", "--to", "dcp")
    (tmp_path / "out").rename(tmp_path / f"out.old-{new_save_id()}")
    assert "pass --overwrite" in refused(source, tmp_path / "out", "--to", "dcp", code=2)
    assert read_bits("dcp", tmp_path / "out") == all_bits({"w": torch.ones(2)})
    assert names_in(tmp_path) == ["a.pt", "out"]


MEASURE = """
import resource, sys
import torch, torch.distributed.checkpoint
from ckptrun.tools.cli import main
import ckptrun.tools.convert, ckptrun.formats.dcp.writer, ckptrun.formats.safetensors_format.writer
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = main(sys.argv[1:])
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024, file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def large_sources(large: Path) -> dict[str, Path]:
    """The same in the formats that are not memory-mapped."""
    sources = {format: large.parent / format for format in ("ckptrun", "dcp")}
    for format, source in sources.items():
        convert(large, source, "--to", format, "--no-check")
    return sources


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "to", "most_mib"), [("dcp", "ckptrun", 200), ("ckptrun", "safetensors", 200), ("ckptrun", "dcp", 360)]
)
def test_memory_is_bounded(format: str, to: str, most_mib: int, large_sources: dict[str, Path], tmp_path: Path) -> None:
    """The largest tensor has 153 MiB, which only DCP needs as a whole."""
    arguments = ["convert", str(large_sources[format]), str(tmp_path / to), "--to", to]
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.split()[-1]) < most_mib


def test_the_command_works_as_a_process(tmp_path: Path) -> None:
    source = write("dcp", state(IN_SAFETENSORS), tmp_path / "dcp")
    ended = start_tool("convert", source, tmp_path / "x.safetensors", "--to", "safetensors", "--only", "model")
    assert ended.code == 0
    assert not ended.errors
    assert "x.safetensors: written as safetensors from" in ended.output
    assert read_bits("safetensors", tmp_path / "x.safetensors") == all_bits(state(IN_SAFETENSORS)["model"])
    torch.save({0: torch.ones(1)}, tmp_path / "int.pt")
    ended = run_tool("convert", tmp_path / "int.pt", tmp_path / "c", "--to", "ckptrun")
    assert "note: 1 keys of dicts are no text" in ended.errors
    assert run_tool("convert", tmp_path / "none", tmp_path / "y", "--to", "dcp").code == 2
