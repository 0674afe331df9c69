"""Half a model is never taken for a whole one: every index is honoured, counts in names too, and what lacks is named."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from ckptrun.formats.common.part_names import is_index_name, missing_by_name, part_of
from tests.tools.run_tool import Ended, run_tool

STATE = {f"layer.{index}": torch.full((2,), float(index)) for index in range(3)}


def shards(
    folder: Path,
    *,
    stem: str = "model",
    suffix: str = "safetensors",
    index: str | None = "model.safetensors.index.json",
    total: int | None = 24,
    count: int = 3,
    form: str = "{stem}-{number:05d}-of-{count:05d}.{suffix}",
) -> list[str]:
    folder.mkdir(exist_ok=True)
    files = [form.format(stem=stem, number=number, count=count, suffix=suffix) for number in range(1, count + 1)]
    for file, (name, tensor) in zip(files, STATE.items(), strict=False):
        if suffix == "safetensors":
            safetensors.torch.save_file({name: tensor}, folder / file)
        else:
            torch.save({name: tensor}, folder / file)
    if index is not None:
        metadata = {} if total is None else {"total_size": total}
        content = {"metadata": metadata, "weight_map": dict(zip(STATE, files, strict=False))}
        (folder / index).write_text(json.dumps(content))
    return files


def convert(place: Path, *options: str, to: Path | None = None) -> Ended:
    return run_tool("convert", place, to or place.parent / "out.pt", "--to", "torch", *options)


FORMS = {
    "transformers": ("model", "safetensors", "model.safetensors.index.json"),
    "diffusers": ("diffusion_pytorch_model", "safetensors", "diffusion_pytorch_model.safetensors.index.json"),
    "variant": ("model.fp16", "safetensors", "model.safetensors.index.fp16.json"),
    "pickled": ("pytorch_model", "bin", "pytorch_model.bin.index.json"),
    "pickled variant": ("pytorch_model.fp16", "bin", "pytorch_model.bin.index.fp16.json"),
    "no index": ("model", "safetensors", None),
    "pickled, no index": ("pytorch_model", "bin", None),
    "parts of pth": ("consolidated", "pth", None),
}


@pytest.mark.parametrize("lost", [0, 1, 2])
@pytest.mark.parametrize("form", FORMS)
def test_a_missing_shard_is_named_and_nothing_written(form: str, lost: int, tmp_path: Path) -> None:
    stem, suffix, index = FORMS[form]
    files = shards(tmp_path / "hf", stem=stem, suffix=suffix, index=index)
    whole = convert(tmp_path / "hf")
    assert whole.code == 0, whole
    assert {name: found.tolist() for name, found in torch.load(tmp_path / "out.pt").items()} == {
        name: found.tolist() for name, found in STATE.items()
    }
    (tmp_path / "out.pt").unlink()
    (tmp_path / "hf" / files[lost]).unlink()
    for ended in (convert(tmp_path / "hf"), run_tool("diff", tmp_path / "hf", tmp_path / "hf")):
        assert ended.code == 3, ended
        assert "is not whole" in ended.errors
        assert files[lost] in ended.errors
    assert not (tmp_path / "out.pt").exists()
    partly = convert(tmp_path / "hf", "--incomplete")
    assert partly.code == 0, partly
    assert "NOT WHOLE" in partly.errors
    assert files[lost] in partly.errors
    assert len(torch.load(tmp_path / "out.pt")) == 2


@pytest.mark.parametrize("form", ["{stem}_{number:05d}-of-{count:05d}.{suffix}", "{stem}{number}of{count}.{suffix}"])
def test_other_ways_to_count_are_understood(form: str, tmp_path: Path) -> None:
    files = shards(tmp_path / "hf", index=None, form=form)
    assert convert(tmp_path / "hf").code == 0
    (tmp_path / "hf" / files[1]).unlink()
    ended = run_tool("diff", tmp_path / "hf", tmp_path / "hf")
    assert (ended.code, files[1] in ended.errors) == (3, True), ended


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        (["a-00000-of-00003.bin", "a-00002-of-00003.bin"], "a-00001-of-00003.bin"),
        (["consolidated.00.pth", "consolidated.02.pth"], "consolidated.01.pth"),
        (["consolidated.01.safetensors"], "consolidated.00.safetensors"),
        (["rank_1.safetensors", "rank_2.safetensors"], "rank_0.safetensors"),
        (
            ["shard-00001-model-00001-of-00001.safetensors", "shard-00003-model-00001-of-00001.safetensors"],
            "shard-00002",
        ),
        (["model.safetensors"], None),
        (["model-00001-of-00001.safetensors", "adapter.safetensors"], None),
        (["step_10.safetensors", "step_20.safetensors"], None),
    ],
)
def test_gaps_are_seen_in_names(names: list[str], missing: str | None) -> None:
    found = list(missing_by_name(names))
    assert bool(found) == (missing is not None)
    assert missing is None or missing in found[0]


def test_names_of_indexes_and_parts() -> None:
    assert all(
        map(is_index_name, ["model.safetensors.index.json", "pytorch_model.bin.index.fp16.json", "x.index-1.json"])
    )
    assert not any(map(is_index_name, ["index.json", "config.json", "model.safetensors"]))
    assert part_of("model-00002-of-00005.safetensors") == (2, 5)
    assert part_of("model-00001-of-00001.safetensors") is None


def test_what_an_index_says_wrongly_of_whole_files_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    index = folder / "model.safetensors.index.json"
    files = shards(folder)
    said = json.loads(index.read_text())
    for change, word in (
        ({"weight_map": {**said["weight_map"], "layer.9": files[0]}}, f"layer.9 is in {files[0]}, where it is not"),
        ({"weight_map": {**said["weight_map"], "layer.0": files[1]}}, "layer.0"),
        ({"weight_map": dict(list(said["weight_map"].items())[:2])}, files[2]),
        ({"metadata": {"total_size": 40}}, "says that all tensors have 40 bytes (total_size), and 24 are there"),
        ({"weight_map": {**said["weight_map"], "x": "../x.safetensors"}}, "only files of the folder itself"),
        ({"weight_map": {**said["weight_map"], "x": "/x.safetensors"}}, "only files of the folder itself"),
    ):
        (folder / files[2]).exists() or shards(folder)
        index.write_text(json.dumps(said | change))
        if change.get("weight_map") == dict(list(said["weight_map"].items())[:2]):
            # The index knows nothing of the third, whose name is missing, and the names of the others count three.
            (folder / files[2]).unlink()
        ended = convert(folder)
        assert ended.code == 3, (change, ended)
        assert word in ended.errors.replace("'", ""), ended.errors
    assert not (tmp_path / "out.pt").exists()


def test_a_total_that_is_less_than_what_is_there_is_only_remarked(tmp_path: Path) -> None:
    shards(tmp_path / "hf", total=8)
    ended = convert(tmp_path / "hf")
    assert ended.code == 0
    assert "8 bytes (total_size), and there are 24" in ended.errors


def test_of_several_indexes_one_is_named_or_all_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "hf"
    shards(folder)
    shards(folder, stem="model.fp16", index="model.safetensors.index.fp16.json")
    ended = convert(folder)
    assert ended.code == 2
    assert "holds several checkpoints" in ended.errors
    out = tmp_path / "out.pt"
    assert convert(folder / "model.safetensors.index.fp16.json", to=out).code == 0
    assert run_tool("diff", folder / "model.safetensors.index.json", out).code == 0
    (folder / "model.fp16-00002-of-00003.safetensors").unlink()
    ended = convert(folder / "model.safetensors.index.fp16.json", "--overwrite", to=out)
    assert (ended.code, "model.fp16-00002-of-00003.safetensors" in ended.errors) == (3, True), ended


def test_a_part_that_is_named_itself_is_no_model(tmp_path: Path) -> None:
    files = shards(tmp_path / "hf")
    ended = convert(tmp_path / "hf" / files[0])
    assert ended.code == 2
    assert "is one of 3 parts by its name" in ended.errors
    assert convert(tmp_path / "hf" / files[0], "--incomplete", to=tmp_path / "out.pt").code == 0
    assert list(torch.load(tmp_path / "out.pt")) == ["layer.0"]


def test_several_checkpoints_in_one_folder_are_no_one_checkpoint(tmp_path: Path) -> None:
    for name in ("best", "last"):
        safetensors.torch.save_file({"w": torch.ones(2)}, tmp_path / f"{name}.safetensors")
    ended = run_tool("diff", tmp_path, tmp_path)
    assert ended.code == 2
    assert "w is in best.safetensors and in last.safetensors" in ended.errors.replace("'", "")


def test_parts_cut_out_of_tensors_are_not_put_together_by_guess(tmp_path: Path) -> None:
    for number in range(2):
        torch.save({"w": torch.ones(2)}, tmp_path / f"consolidated.{number:02d}.pth")
    ended = run_tool("diff", tmp_path, tmp_path)
    assert ended.code == 2
    assert "nothing says how they belong together" in ended.errors
