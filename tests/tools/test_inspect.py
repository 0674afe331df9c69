"""``ckptrun inspect``: what it shows is what was saved, and a file cannot make it show anything else."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckptrun.engine.commit import hold_save
from ckptrun.engine.layout import MANIFEST
from ckptrun.engine.locate import locate
from ckptrun.engine.manifest import read_manifest, to_bytes
from ckptrun.engine.storage import ShardWriter
from tests.support.bits import flip, random_tensor
from tests.tools.run_tool import run_on_terminal, run_tool, run_without_torch, start_tool
from tests.tools.saved import save, truth

pytestmark = pytest.mark.distributed

SAVE_ID = "0123456789abcdef0123456789abcdef"


def row(output: str, name: str) -> str:
    """The only line whose first word is ``name``."""
    (line,) = [line for line in output.splitlines() if line.split()[:1] == [name]]
    return " ".join(line.split())


def test_it_shows_the_facts_of_the_save(step_20: Path) -> None:
    ended = run_tool("inspect", step_20)
    assert ended.code == 0, ended
    manifest = read_manifest(step_20)
    assert ended.output.splitlines()[0] == str(step_20)
    assert row(ended.output, "step") == "step 20"
    assert row(ended.output, "saved") == f"saved {manifest.created.replace('T', ' ').replace('+00:00', ' UTC')}"
    assert row(ended.output, "torch") == f"torch {torch.__version__}"
    assert row(ended.output, "ranks") == "ranks 2"
    assert row(ended.output, "mesh") == "mesh replicate 1, shard 2"
    assert f"save id  {manifest.save_id}" in ended.output
    assert row(ended.output, "leaves") == "leaves 11: 7 tensors, 4 plain values"
    assert row(ended.output, "threads") == "threads 1"


@pytest.mark.parametrize(
    ("leaf", "words"),
    [
        ("model", "7 leaves 1.2 MB"),
        ("optimizer", "4 leaves"),
        ("model.blocks.0.weight", "float32 [5, 8] 2 chunks (2x1) in 2 files 160 B"),
        ("model.blocks.1.weight", "bfloat16 [3, 6] 2 chunks (1x2) in 2 files 36 B"),
        ("model.norm", "float64 [7] whole 56 B"),
        ("model.large", "float32 [300, 1000] 2 chunks (2x1) in 2 files 1.2 MB"),
        ("model.scale", "float32 [] whole 4 B"),
        ("model.empty", "float16 [0, 3] whole 0 B"),
        ("optimizer.lr", "float 0.1"),
        ("optimizer.betas", "tuple (0.9, nan)"),
        ("optimizer.names", "list ['a', None, b'\\x00']"),
    ],
)
def test_it_shows_each_leaf_with_its_full_name(leaf: str, words: str, step_20: Path) -> None:
    assert row(run_tool("inspect", step_20).output, leaf) == f"{leaf} {words}"


def test_a_terminal_gets_colours_and_a_tree_and_a_pipe_does_not(step_20: Path) -> None:
    shown = run_on_terminal("inspect", step_20)
    assert shown.code == 0
    assert "\x1b[" in shown.output
    assert "└── " in shown.output
    plain = run_on_terminal("inspect", step_20, "--no-color")
    assert "\x1b[" not in plain.output
    assert plain.output.replace("\r\n", "\n") == start_tool("inspect", step_20).output


def test_depth_folds_what_is_deeper(step_20: Path) -> None:
    output = run_tool("inspect", step_20, "--depth", 1).output
    assert row(output, "model") == "model 7 leaves 1.2 MB"
    assert "model.norm" not in output
    output = run_tool("inspect", step_20, "--depth", 2).output
    assert row(output, "model.blocks") == "model.blocks 2 leaves 196 B"
    assert "model.blocks.0" not in output
    assert row(output, "model.norm") == "model.norm float64 [7] whole 56 B"
    ended = run_tool("inspect", step_20, "--depth", 0)
    assert ended.code == 2
    assert "--depth" in ended.errors


def test_json_holds_all_that_the_manifest_says(step_20: Path) -> None:
    ended = run_tool("inspect", step_20, "--json")
    assert ended.code == 0
    document, body = ended.document, json.loads((step_20 / MANIFEST).read_text())["manifest"]
    assert document["path"] == str(step_20)
    assert document["format"] == 1
    assert document["step"] == 20
    assert document["mesh"] == {"replicate": 1, "shard": 2}
    for key in ("save_id", "created", "torch", "world_size", "run", "files", "shared"):
        assert document[key] == body[key], key
    assert document["bytes"] == sum(path.stat().st_size for path in step_20.glob("*.safetensors"))
    assert document["components"] == {
        "model": {"leaves": 7, "tensors": 7, "bytes": 160 + 36 + 56 + 1_200_000 + 4 + 8},
        "optimizer": {"leaves": 4, "tensors": 0, "bytes": 0},
    }
    for shown, saved in zip(document["leaves"], body["leaves"], strict=True):
        for key, value in saved.items():
            assert shown[key] == value, (saved["name"], key)
        assert shown["component"] == saved["path"][0]
        assert shown["kind"] == ("tensor" if "dtype" in saved else "value")


def test_tied_leaves_are_named(tmp_path: Path) -> None:
    weight = torch.ones(2, 2)
    folder = save(tmp_path / "tied", {"model": {"a": weight, "b": weight, "c": torch.ones(2, 2)}})
    output = run_tool("inspect", folder).output
    assert row(output, "model.a").endswith("tied with model.b")
    assert row(output, "model.b").endswith("tied with model.a")
    assert "tied" not in row(output, "model.c")
    leaves = {leaf["name"]: leaf for leaf in run_tool("inspect", folder, "--json").document["leaves"]}
    assert leaves["model.a"]["tied_with"] == ["model.b"]
    assert leaves["model.c"]["tied_with"] == []


def test_without_facts_of_a_run_there_is_no_step_and_no_mesh(tmp_path: Path) -> None:
    ended = run_tool("inspect", save(tmp_path / "any name", {"w": torch.ones(2)}))
    assert ended.code == 0
    assert not [line for line in ended.output.splitlines() if line.split()[0] in ("step", "mesh")]


def test_leaf_prints_the_values_of_a_small_sharded_tensor(step_20: Path) -> None:
    ended = run_tool("inspect", step_20, "--leaf", "model.blocks.1.weight")
    assert ended.code == 0
    expected = truth()["model"]["blocks"][1]["weight"]
    shown = [line.strip(" []").split(", ") for line in ended.output.splitlines() if line.startswith(" [")]
    found = [[float(number) for number in numbers] for numbers in shown]
    assert repr(torch.tensor(found, dtype=torch.float32).tolist()) == repr(expected.float().tolist())
    assert "bfloat16" in ended.output
    files = [line.split()[0] for line in ended.output.splitlines() if line.strip().startswith("rank_")]
    assert files == ["rank_00000.safetensors", "rank_00001.safetensors"]


def test_leaf_prints_the_edges_of_a_large_sharded_tensor(step_20: Path) -> None:
    large = truth()["model"]["large"]
    ended = run_tool("inspect", step_20, "--leaf", "model.large", "--json")
    assert ended.code == 0
    assert ended.document["left_out_before"] == [3, 3]
    edges = torch.cat([large[:3], large[-3:]])
    edges = torch.cat([edges[:, :3], edges[:, -3:]], dim=1)
    shown = [[as_float(number) for number in line] for line in ended.document["values"]]
    assert repr(shown) == repr(edges.double().tolist())
    lines = run_tool("inspect", step_20, "--leaf", "model.large").output.splitlines()
    assert len([line for line in lines if line.startswith(" [") and ", ..., " in line]) == 6
    assert lines.count(" ...") == 1


def as_float(encoded: Any) -> float:
    """A number as JSON has it."""
    if isinstance(encoded, dict):
        return float("nan") if "$nan" in encoded else float(encoded["$float"])
    return float(encoded)


@pytest.mark.parametrize("shape", [(1001,), (2000, 1), (1, 2000), (5, 6, 7, 8), (2, 9, 2, 3, 40), (9, 1, 9, 1, 9, 9)])
def test_edges_of_any_shape_are_the_elements_that_stand_there(shape: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.arange(torch.Size(shape).numel()).view(shape)
    folder = save(tmp_path / "edges", {"w": tensor})
    document = run_tool("inspect", folder, "--leaf", "w", "--json").document
    found = torch.tensor(document["values"])
    for index in itertools.product(*map(range, found.shape)):
        place = tuple(
            at if cut is None or at < cut else size - (length - at)
            for at, cut, size, length in zip(index, document["left_out_before"], shape, found.shape, strict=True)
        )
        assert found[index] == tensor[place]
    assert run_tool("inspect", folder, "--leaf", "w").code == 0


def test_values_of_every_dtype_are_written_out(tmp_path: Path) -> None:
    names = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e8m0fnu float4_e2m1fn_x2 complex64"
    names += " complex128 int64 uint64 uint8 int8 bool"
    state = {name: random_tensor(getattr(torch, name), (2, 3)) for name in names.split()}
    folder = save(tmp_path / "dtypes", state)
    for name, tensor in state.items():
        ended = run_tool("inspect", folder, "--leaf", name)
        assert ended.code == 0, ended
        assert len(ended.output.rpartition("\n[\n")[2].splitlines()) == 3
        assert run_tool("inspect", folder, "--leaf", name, "--json").document["dtype"] == name
        if tensor.dtype in (torch.int64, torch.uint64, torch.uint8, torch.int8, torch.bool):
            assert run_tool("inspect", folder, "--leaf", name, "--json").document["values"] == tensor.tolist()


def test_leaf_prints_a_plain_value(step_20: Path) -> None:
    ended = run_tool("inspect", step_20, "--leaf", "optimizer.betas")
    assert ended.code == 0
    assert ended.output.splitlines()[-1] == "(0.9, nan)"
    document = run_tool("inspect", step_20, "--leaf", "optimizer.betas", "--json").document
    assert document["value"] == {"$tuple": [0.9, {"$nan": "7ff8000000000000"}]}
    assert run_without_torch("inspect", step_20, "--leaf", "optimizer.lr").code == 0


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("model.nrm", "model.norm"),
        ("norm", "model.norm"),
        ("model.blocks", "It holds 2 leaves: model.blocks.0.weight, model.blocks.1.weight"),
        ("zzz", "Names begin with: model, optimizer"),
    ],
)
def test_a_leaf_that_is_not_there_is_told_with_near_names(name: str, near: str, step_20: Path) -> None:
    ended = run_tool("inspect", step_20, "--leaf", name)
    assert ended.code == 2
    assert near in ended.errors
    assert ended.errors.count("\n") == 1


def test_damage_in_the_shown_bytes_is_found(run_copy: Path) -> None:
    folder = run_copy / "checkpoints/step_00000020"
    chunk = read_manifest(folder).leaves["model.norm"].chunks[0]
    flip(folder / chunk.file, chunk.begin)
    ended = run_tool("inspect", folder, "--leaf", "model.norm")
    assert ended.code == 3
    assert "model.norm" in ended.errors
    assert "checksum" in ended.errors


def test_a_leaf_that_is_only_partly_there_is_not_made_up(tmp_path: Path) -> None:
    folder = save(tmp_path / "part", {"w": torch.ones(4)})
    manifest = read_manifest(folder)
    # As if another rank had not taken part.
    leaves = {"w": replace(manifest.leaves["w"], shape=(8,))}
    (folder / MANIFEST).write_bytes(to_bytes(replace(manifest, leaves=leaves)))
    ended = run_tool("inspect", folder, "--leaf", "w")
    assert ended.code == 2
    assert "only partly" in ended.errors
    assert "not all of it" in row(run_tool("inspect", folder).output, "w")


@pytest.mark.parametrize("where", [".", "checkpoints"])
def test_a_run_lists_its_checkpoints_leftovers_and_saves_in_flight(where: str, run_copy: Path) -> None:
    root = run_copy / "checkpoints"
    (root / f"step_00000060.tmp-{SAVE_ID}").mkdir()
    (root / f"step_00000010.gone-{SAVE_ID}").mkdir()
    (root / f"step_00000020.old-{SAVE_ID}").mkdir()
    release = hold_save(locate(root / "step_00000080"), "f" * 32)
    ended, document = run_tool("inspect", run_copy / where), run_tool("inspect", run_copy / where, "--json").document
    release()
    assert ended.code == 0
    for step in (20, 40):
        manifest = read_manifest(root / f"step_{step:08d}")
        size = sum(file.bytes for file in manifest.files.values())
        shown = document["checkpoints"][step // 20 - 1]
        assert shown == {
            "name": f"step_{step:08d}",
            "step": step,
            "created": manifest.created,
            "world_size": 2,
            "save_id": manifest.save_id,
            "leaves": 11,
            "files": 2,
            "bytes": size,
            "damage": None,
        }
        assert f"{step}" in row(ended.output, f"step_{step:08d}")
    assert document["leftovers"] == [
        f"step_00000010.gone-{SAVE_ID}",
        f"step_00000020.old-{SAVE_ID}",
        f"step_00000060.tmp-{SAVE_ID}",
    ]
    assert list(document["in_flight"]) == [f"step_00000080.tmp-{'f' * 32}.lock"]
    assert "removed, not yet deleted" in row(ended.output, f"step_00000010.gone-{SAVE_ID}")
    assert "a save that did not end" in row(ended.output, f"step_00000060.tmp-{SAVE_ID}")
    assert "process" in row(ended.output, f"step_00000080.tmp-{'f' * 32}.lock")


def test_a_run_with_a_damaged_manifest_lists_the_others_and_says_so(run_copy: Path) -> None:
    flip(run_copy / "checkpoints/step_00000020" / MANIFEST, 500)
    ended = run_tool("inspect", run_copy)
    assert ended.code == 3
    assert "DAMAGED" in row(ended.output, "step_00000020")
    assert "2 tensors" not in ended.output
    assert " 40 " in row(ended.output, "step_00000040")
    first, second = run_tool("inspect", run_copy, "--json").document["checkpoints"]
    assert "checksum" in first["damage"]
    assert first["bytes"] is None
    assert second["damage"] is None


def test_a_damaged_manifest_is_one_line_and_exit_code_3(run_copy: Path) -> None:
    folder = run_copy / "checkpoints/step_00000020"
    flip(folder / MANIFEST, 500)
    ended = run_tool("inspect", folder)
    assert ended.code == 3
    assert ended.output == ""
    assert ended.errors.count("\n") == 1
    assert "checksum" in ended.errors


def test_a_leaf_of_a_run_is_refused(run_folder: Path) -> None:
    ended = run_tool("inspect", run_folder, "--leaf", "model.norm")
    assert ended.code == 2
    assert "--leaf needs one checkpoint" in ended.errors


def test_what_is_no_checkpoint_is_told_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "data.txt").touch()
    for path, words in (
        (tmp_path, "data.txt"),
        (tmp_path / "nothing", "does not exist"),
        (tmp_path / "data.txt", "an empty file"),
        ("nowhere://x", "nowhere"),
    ):
        ended = run_tool("inspect", path)
        assert ended.code == 2, path
        assert words in ended.errors
        assert ended.errors.startswith("ckptrun: ")
        assert ended.errors.count("\n") == 1


def test_a_run_that_keeps_its_checkpoints_elsewhere_says_where_to_look(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"checkpoint:\n  path: {tmp_path}/elsewhere\n")
    ended = run_tool("inspect", tmp_path)
    assert (ended.code, f"{tmp_path}/elsewhere, where there are none" in ended.errors) == (2, True), ended


def test_names_in_a_file_cannot_steer_the_terminal(tmp_path: Path) -> None:
    hostile = {"evil\x1b[2J\r\n\x07name\u202e": torch.ones(2), "text": "\x1b]0;title\x07"}
    folder = save(tmp_path / "hostile", hostile, **{"note\x1b[31m": "x\x1b[0m"})
    for arguments in ([], ["--leaf", "nix"], ["--leaf", "text"], ["--leaf", next(iter(hostile))]):
        ended = run_tool("inspect", folder, *arguments)
        assert ended.code == (2 if "nix" in arguments else 0)
        text = ended.output + ended.errors
        assert not [character for character in text if character != "\n" and not character.isprintable()]
    assert "evil\\x1b[2J\\r\\n\\x07name" in run_tool("inspect", folder).output
    shown = run_on_terminal("inspect", folder).output
    assert "\x1b[2J" not in shown
    assert "\x07" not in shown


def test_a_checkpoint_in_memory_is_shown() -> None:
    url = "memory://inspect/step_00000005"
    dcp.save({"model": {"w": torch.ones(3)}}, storage_writer=ShardWriter(url), no_dist=True)
    assert row(run_tool("inspect", url).output, "model.w") == "model.w float32 [3] whole 12 B"
    assert row(run_tool("inspect", "memory://inspect").output, "step_00000005").startswith("step_00000005 5 ")
    assert run_tool("inspect", url, "--leaf", "model.w").output.endswith("[1.0, 1.0, 1.0]\n")


def test_no_torch_is_imported(run_folder: Path, step_20: Path) -> None:
    assert run_without_torch("inspect", step_20).code == 0
    assert run_without_torch("inspect", run_folder, "--json").code == 0
    assert run_without_torch("inspect", step_20, "--leaf", "model.norm").code == 99


@pytest.mark.slow
def test_twenty_thousand_leaves_are_shown(tmp_path: Path) -> None:
    one = torch.ones(1)
    folder = save(tmp_path / "many", {f"layer.{index}.w": one + index for index in range(20_000)})
    ended = run_tool("inspect", folder)
    assert ended.code == 0
    assert ended.output.count("\n") > 20_000


def test_names_of_any_depth_are_shown(tmp_path: Path) -> None:
    nested: Any = torch.ones(2)
    for _ in range(200):
        nested = {"x": nested}
    name = ".".join(["x"] * 200)
    folder = save(tmp_path / "deep", {"w": nested, name: torch.ones(3)})
    assert row(run_tool("inspect", folder).output, name) == f"{name} float32 [3] whole 12 B"
    assert row(run_tool("inspect", folder).output, f"w.{name}") == f"w.{name} float32 [2] whole 8 B"


def test_a_checkpoint_of_a_copied_folder_is_shown(step_20: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(step_20, tmp_path / "anything at all")
    assert row(run_tool("inspect", copy).output, "step") == "step 20"
