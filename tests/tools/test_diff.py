"""``ckptrun diff``: every differing bit is found, whatever the sharding and format; equal is called equal."""

import copy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file

from ckptrun.elements.distance import has_steps
from ckptrun.engine.layout import MANIFEST
from ckptrun.engine.manifest import read_manifest, to_bytes
from ckptrun.engine.storage import ShardWriter
from tests.support.bits import flip, random_tensor
from tests.support.run_ranks import run_ranks
from tests.tools.run_tool import ROOT, Ended, run_on_terminal, run_tool
from tests.tools.saved import save, sharded, truth

pytestmark = pytest.mark.distributed

NAMES = [
    "model.blocks.0.weight",
    "model.blocks.1.weight",
    "model.norm",
    "model.large",
    "model.scale",
    "model.mask",
    "model.empty",
    "optimizer.lr",
    "optimizer.betas",
    "optimizer.names",
    "optimizer.step",
]


def diff(a: Path | str, b: Path | str, *arguments: object) -> dict[str, Any]:
    """What ``diff --json`` says; the exit codes and the text must agree with it."""
    ended = run_tool("diff", a, b, *arguments, "--json")
    document = ended.document
    is_different = bool(document["differing"] or document["only_in_a"] or document["only_in_b"])
    assert ended.code == (3 if is_different else 4 if document["not_compared"] else 0), ended
    shown = run_tool("diff", a, b, *arguments)
    assert shown.code == ended.code
    counts = [len(document[key]) for key in ("equal", "differing", "only_in_a", "only_in_b")]
    assert "{} equal, {} differing, {} only in A, {} only in B".format(*counts) in shown.output
    for difference in document["differing"]:
        assert difference["leaf"] in shown.output
    return document


def test_another_sharding_of_the_same_values_is_equal(step_20: Path, tmp_path: Path) -> None:
    document = diff(step_20, save(tmp_path / "one rank", truth()))
    assert sorted(document["equal"]) == sorted(NAMES)
    assert document["is_equal"] is True
    assert document["a"] == {"path": str(step_20), "format": "ckptrun", "leaves": 11, "left_out": 0, "remarks": []}


def save_dcp(folder: str) -> None:
    dcp.save(sharded(truth()), checkpoint_id=folder)


def test_a_dcp_checkpoint_of_the_same_values_is_equal(step_20: Path, tmp_path: Path) -> None:
    run_ranks(save_dcp, 2, str(tmp_path / "dcp"))
    document = diff(tmp_path / "dcp", step_20)
    assert sorted(document["equal"]) == sorted(NAMES)
    assert document["a"]["format"] == "dcp"


def test_a_torch_file_of_the_same_values_is_equal(step_20: Path, tmp_path: Path) -> None:
    torch.save(truth(), tmp_path / "all.pt")
    assert sorted(diff(step_20, tmp_path / "all.pt")["equal"]) == sorted(NAMES)


def test_a_safetensors_file_of_the_model_is_equal_below_its_prefix(step_20: Path, tmp_path: Path) -> None:
    model = truth()["model"]
    blocks = model.pop("blocks")
    save_file(model | {f"blocks.{index}.weight": block["weight"] for index, block in enumerate(blocks)}, tmp_path / "m")
    (tmp_path / "m").rename(tmp_path / "m.safetensors")
    document = diff(step_20, tmp_path / "m.safetensors", "--prefix-a", "model")
    assert sorted(document["equal"]) == sorted(name.removeprefix("model.") for name in NAMES[:7])
    assert document["a"]["left_out"] == 4
    assert diff(tmp_path / "m.safetensors", step_20, "--prefix-b", "model.")["is_equal"]


def test_every_leaf_of_another_step_differs(run_folder: Path, step_20: Path) -> None:
    document = diff(step_20, run_folder / "checkpoints/step_00000040")
    assert {item["leaf"] for item in document["differing"]} == set(NAMES[:6]) | {"optimizer.step"}
    assert document["equal"] == ["model.empty", "optimizer.lr", "optimizer.betas", "optimizer.names"]


@pytest.mark.parametrize("index", [(0, 0), (0, 999), (149, 999), (150, 0), (263, 17), (299, 999)])
@pytest.mark.parametrize("bit", [0, 31])
def test_one_flipped_bit_is_found_at_its_index(index: tuple[int, int], bit: int, step_20: Path, tmp_path: Path) -> None:
    state = truth()
    tensor = state["model"]["large"]
    old, bits = tensor[index].item(), tensor.view(torch.int32)
    before = bits[index].item()
    bits[index] ^= -(2**31) if bit == 31 else 1
    (item,) = diff(step_20, save(tmp_path / "changed", state))["differing"]
    assert item["leaf"] == "model.large"
    assert item["differs_in"] == ["elements"]
    elements = item["elements"]
    assert (elements["total"], elements["differing"]) == (300_000, 1)
    first = elements["first"]
    assert first["index"] == list(index)
    assert first["a"]["bits"] == f"0x{before & 0xFFFFFFFF:08x}"
    assert first["b"]["bits"] == f"0x{bits[index].item() & 0xFFFFFFFF:08x}"
    if old == old:
        assert first["a"]["value"] == old
        assert elements["largest_ulp"] == (1 if bit == 0 else 2 * (before & 0x7FFFFFFF))
    else:
        assert elements["largest_ulp"] is None
        assert elements["nans"] == 1


def test_all_differing_elements_are_counted_over_slabs(tmp_path: Path) -> None:
    a = torch.zeros(5000, 1111)
    b = a.clone()
    places = torch.randperm(a.numel(), generator=torch.Generator().manual_seed(0))[:777]
    b.view(-1)[places] = 1e-45  # the smallest number: one step from zero
    b[4000, 7] = 3e-45
    (item,) = diff(save(tmp_path / "a", {"w": a}), save(tmp_path / "b", {"w": b}))["differing"]
    expected = torch.nonzero(a != b)
    assert item["elements"]["differing"] == len(expected)
    assert item["elements"]["first"]["index"] == expected[0].tolist()
    assert item["elements"]["largest_ulp"] == 2


@pytest.mark.parametrize(
    "name",
    [
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"),
        *("float8_e5m2fnuz", "float8_e8m0fnu", "float4_e2m1fn_x2", "complex128", "complex64", "complex32"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    ],
)
@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
def test_every_dtype_is_compared_by_its_bits(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    a = random_tensor(dtype, (3, 5), seed=7)
    b = a.clone()
    raw = b.view(torch.uint8).view(-1)
    raw[7 * dtype.itemsize] ^= 1
    one, other = save(tmp_path / "a", {"w": a}), save(tmp_path / "b", {"w": b})
    assert diff(one, save(tmp_path / "c", {"w": a.clone()}))["is_equal"]
    (item,) = diff(one, other)["differing"]
    elements = item["elements"]
    assert (elements["total"], elements["differing"]) == (15, 1)
    assert elements["first"]["index"] == [1, 2]
    assert elements["first"]["a"]["bits"] != elements["first"]["b"]["bits"]
    assert (elements["largest_ulp"] is not None or elements["nans"] > 0) == has_steps(name)


def test_a_sign_of_zero_and_a_nan_are_differences(tmp_path: Path) -> None:
    a = torch.tensor([0.0, 1.0, float("nan"), float("inf"), 2.0])
    b = torch.tensor([-0.0, float("nan"), float("nan"), torch.finfo(torch.float32).max, 2.0])
    b.view(torch.int32)[2] += 1
    (item,) = diff(save(tmp_path / "a", {"w": a}), save(tmp_path / "b", {"w": b}))["differing"]
    assert item["elements"]["differing"] == 4
    assert item["elements"]["nans"] == 2
    assert item["elements"]["largest_ulp"] == 1
    (item,) = diff(save(tmp_path / "c", {"w": a[:1]}), save(tmp_path / "d", {"w": b[:1]}))["differing"]
    assert item["elements"]["largest_ulp"] == 0
    assert item["elements"]["first"]["b"]["bits"] == "0x80000000"


def test_dtype_shape_and_kind_are_differences_of_their_own(tmp_path: Path) -> None:
    a = {"d": torch.ones(2), "s": torch.ones(6), "both": torch.ones(2), "k": torch.tensor(1.0), "z": torch.ones(1)}
    b = {
        "d": torch.ones(2).double(),
        "s": torch.ones(2, 3),
        "both": torch.ones(3).half(),
        "k": 1.0,
        "z": torch.tensor(1.0),
    }
    document = diff(save(tmp_path / "a", a), save(tmp_path / "b", b))
    found = {item["leaf"]: item for item in document["differing"]}
    assert {name: item["differs_in"] for name, item in found.items()} == {
        "d": ["dtype"],
        "s": ["shape"],
        "both": ["dtype", "shape"],
        "k": ["kind"],
        "z": ["shape"],
    }
    assert found["d"]["a"] == {"kind": "tensor", "dtype": "float32", "shape": [2]}
    assert found["d"]["b"] == {"kind": "tensor", "dtype": "float64", "shape": [2]}
    assert found["k"]["b"]["type"] == "float"
    assert all(item["elements"] is None for item in found.values())
    output = run_tool("diff", tmp_path / "a", tmp_path / "b").output
    assert "float32 [2]" in output
    assert "float 1.0 (0x3ff0000000000000)" in output


NAN = float("nan")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0),
        (1, True),
        (0.0, -0.0),
        (0.1, 0.1 + 2**-56),
        (None, 0),
        ("a", b"a"),
        ((1, 2), [1, 2]),
        ([1, 2], [2, 1]),
        ((1.0, (2,)), (1.0, [2])),
        (NAN, 1.0),
        ("", None),
    ],
)
def test_plain_values_are_compared_exactly(a: Any, b: Any, tmp_path: Path) -> None:
    (item,) = diff(save(tmp_path / "a", {"v": a}), save(tmp_path / "b", {"v": b}))["differing"]
    assert item["differs_in"] == ["value"]
    assert (item["a"]["type"], item["b"]["type"]) == (type(a).__name__, type(b).__name__)
    assert diff(tmp_path / "a", tmp_path / "a")["is_equal"]


def test_leaves_of_one_side_only_are_listed(tmp_path: Path) -> None:
    a = save(tmp_path / "a", {"both": 1, "a": {"x": torch.ones(2), "y": 2}})
    b = save(tmp_path / "b", {"both": 1, "b": {"z": [3]}})
    document = diff(a, b)
    assert document["only_in_a"] == ["a.x", "a.y"]
    assert document["only_in_b"] == ["b.z"]
    assert document["equal"] == ["both"]
    assert document["is_equal"] is False


def test_only_takes_part_what_was_asked_for(step_20: Path, run_folder: Path) -> None:
    other = run_folder / "checkpoints/step_00000040"
    assert diff(step_20, other, "--only", "model.empty")["equal"] == ["model.empty"]
    document = diff(step_20, other, "--only", "model.blocks")
    assert [item["leaf"] for item in document["differing"]] == NAMES[:2]
    assert document["a"]["left_out"] == 9
    ended = run_tool("diff", step_20, other, "--only", "model.block")
    assert ended.code == 2
    assert "--only=model.block" in ended.errors
    ended = run_tool("diff", step_20, other, "--prefix-a", "modle")
    assert ended.code == 2
    assert "--prefix-a=modle" in ended.errors


def test_with_nothing_in_common_the_prefix_that_would_help_is_named(step_20: Path, tmp_path: Path) -> None:
    torch.save(truth()["model"], tmp_path / "model.pt")
    document = diff(step_20, tmp_path / "model.pt")
    assert "no leaf name in common" in document["hint"]
    assert "--prefix-a model " in document["hint"]
    assert "--prefix-a model " in run_tool("diff", step_20, tmp_path / "model.pt").output
    assert "--prefix-b model " in diff(tmp_path / "model.pt", step_20)["hint"]
    torch.save({"other": 1}, tmp_path / "other.pt")
    assert "No prefix would" in diff(step_20, tmp_path / "other.pt")["hint"]


def test_a_leaf_that_cannot_be_compared_is_no_success(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", {"w": torch.ones(4), "v": 1}), save(tmp_path / "b", {"w": torch.ones(4), "v": 1})
    for folder in (a, b):
        manifest = read_manifest(folder)
        leaves = {**manifest.leaves, "w": replace(manifest.leaves["w"], shape=(8,))}
        (folder / MANIFEST).write_bytes(to_bytes(replace(manifest, leaves=leaves)))
    document = diff(a, b)
    assert list(document["not_compared"]) == ["w"]
    assert "only partly" in document["not_compared"]["w"]
    assert document["equal"] == ["v"]
    assert document["is_equal"] is False
    assert "Not compared: w" in run_tool("diff", a, b).output


def test_damage_ends_it_with_code_3_and_one_line(run_copy: Path, step_20: Path) -> None:
    damaged = run_copy / "checkpoints/step_00000020"
    chunk = read_manifest(damaged).leaves["model.large"].chunks[0]
    flip(damaged / chunk.file, chunk.begin + 5)
    for ended in (run_tool("diff", damaged, step_20), run_tool("diff", step_20, damaged, "--json")):
        assert one_line(ended) == 3
        assert "model.large" in ended.errors
    flip(damaged / MANIFEST, 400)
    assert one_line(run_tool("diff", damaged, step_20)) == 3


def one_line(ended: Ended) -> int:
    """The exit code of a tool that printed one line, on the standard error."""
    assert ended.output == ""
    assert ended.errors.startswith("ckptrun: ")
    assert ended.errors.count("\n") == 1
    return ended.code


def test_what_is_no_checkpoint_ends_with_code_2(step_20: Path, tmp_path: Path) -> None:
    assert one_line(run_tool("diff", step_20, tmp_path / "nothing")) == 2
    assert one_line(run_tool("diff", tmp_path, step_20)) == 2
    assert run_tool("diff", step_20).code == 2


def test_a_checkpoint_in_memory_is_compared(step_20: Path) -> None:
    url = "memory://diff/step_00000020"
    dcp.save(truth(), storage_writer=ShardWriter(url), no_dist=True)
    assert diff(url, step_20)["is_equal"]


def test_it_works_as_a_process_on_a_terminal(run_folder: Path, step_20: Path) -> None:
    shown = run_on_terminal("diff", step_20, run_folder / "checkpoints/step_00000040")
    assert shown.code == 3
    assert "\x1b[" in shown.output
    plain = run_on_terminal("diff", step_20, run_folder / "checkpoints/step_00000040", "--no-color")
    assert "\x1b[" not in plain.output
    assert "model.large" in plain.output


MEASURE = """
import resource, sys, warnings
import ckptrun.tools.compare, ckptrun.formats.ckptrun_format.reader, ckptrun.formats.dcp.reader
from ckptrun.tools.cli import main
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
code = main(["diff", *sys.argv[1:]])
print(peak() - before, file=sys.stderr)
sys.exit(code)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_checkpoints(tmp_path: Path) -> None:
    state = {"a": torch.arange(50_000_000, dtype=torch.float32).view(-1, 1000), "b": torch.ones(25_000_000)}
    changed = copy.deepcopy(state)
    changed["a"] += 1
    one, other = save(tmp_path / "one", state), save(tmp_path / "other", changed)
    dcp.save(state, checkpoint_id=tmp_path / "dcp", no_dist=True)
    for b, code in ((other, 3), (tmp_path / "dcp", 0)):
        ended = subprocess.run(
            [sys.executable, "-c", MEASURE, str(one), str(b)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert ended.returncode == code, ended
        assert int(ended.stderr.split()[-1]) < 256 * 2**20


def test_a_complex_number_is_as_far_as_its_farther_part(tmp_path: Path) -> None:
    a = torch.tensor([1 + 2j, 3 + 4j])
    b = a.clone()
    torch.view_as_real(b).view(torch.int32)[1] += torch.tensor([2, 7], dtype=torch.int32)
    (item,) = diff(save(tmp_path / "a", {"w": a}), save(tmp_path / "b", {"w": b}))["differing"]
    assert item["elements"]["largest_ulp"] == 7
    assert item["elements"]["differing"] == 1
    assert item["elements"]["first"]["a"]["bits"] == "0x40400000 0x40800000"
