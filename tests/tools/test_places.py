"""``inspect``, ``verify`` and ``diff`` take what the others take: other formats, runs, folders of runs, elsewhere too."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.foreign import write
from tests.tools.run_tool import run_tool
from tests.tools.saved import save

STATE: dict[str, Any] = {"model": {"w": torch.arange(6.0).view(2, 3)}, "step": 3}


def make_run(folder: Path, *steps: int, at: Path | None = None) -> Path:
    root = at or folder / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"checkpoint:\n  path: {at or 'null'}\n")
    for step in steps:
        save(root / f"step_{step:08d}", {"model": {"w": torch.full((3,), float(step))}}, step=step)
    return folder


@pytest.mark.parametrize("format", ["dcp", "torch", "safetensors"])
def test_other_formats_are_inspected_and_verified(format: str, tmp_path: Path) -> None:
    path = write(format, STATE, tmp_path / "saved")
    shown = run_tool("inspect", path)
    assert shown.code == 0, shown
    assert "model.w  float32  [2, 3]" in shown.output
    document = run_tool("inspect", path, "--json").document
    assert (document["format"], document["leaves"][0]["shape"]) == (format, [2, 3])
    leaf = run_tool("inspect", path, "--leaf", "model.w")
    assert (leaf.code, "0.0, 1.0, 2.0, 3.0, 4.0, 5.0" in leaf.output) == (0, True), leaf
    found = run_tool("verify", path)
    assert (found.code, "READABLE" in found.output) == (0, True), found
    assert ("no checksums" in found.output) == (format == "safetensors")


def test_damage_of_other_formats_is_found(tmp_path: Path) -> None:
    folder = write("dcp", STATE, tmp_path / "saved")
    file = next(folder.glob("*.distcp"))
    raw = bytearray(file.read_bytes())
    at = raw.index(STATE["model"]["w"].numpy().tobytes())
    raw[at] ^= 1
    file.write_bytes(raw)
    found = run_tool("verify", folder)
    assert (found.code, "DAMAGED" in found.output) == (3, True), found
    file.unlink()
    assert run_tool("verify", folder).code == 3


def test_checkpoints_of_a_run_are_found_where_its_config_says(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", 10, 20, at=tmp_path / "elsewhere")
    for command in (("inspect", run), ("verify", run), ("diff", run, run)):
        ended = run_tool(*command)
        assert ended.code == 0, ended
        assert "elsewhere" in ended.output
    shutil.rmtree(tmp_path / "elsewhere")
    ended = run_tool("verify", run)
    assert (ended.code, "elsewhere, where there are none" in ended.errors) == (2, True), ended


def test_runs_are_compared_at_the_newest_step_that_both_have(tmp_path: Path) -> None:
    one, other = make_run(tmp_path / "one", 10, 20, 30), make_run(tmp_path / "other", 10, 20)
    ended = run_tool("diff", one, other)
    assert (ended.code, ended.output.count("step_00000020")) == (0, 2), ended
    assert run_tool("diff", one, other / "checkpoints/step_00000020").code == 3
    assert run_tool("diff", one, other / "checkpoints/step_00000020", "--step", 20).code == 0
    assert run_tool("diff", one, other, "--step", 30).code == 2
    assert run_tool("diff", make_run(tmp_path / "third", 7), other).code == 2


def test_a_folder_of_runs_is_listed_and_verified(tmp_path: Path) -> None:
    for name in ("a", "sweep/b"):
        make_run(tmp_path / "outputs/experiment" / name, 10)
    make_run(tmp_path / "outputs/experiment/a/proof/reference", 10)
    shown = run_tool("inspect", tmp_path / "outputs")
    assert (shown.code, shown.output.count("step_00000010")) == (0, 2), shown
    found = run_tool("verify", tmp_path / "outputs", "--all")
    assert "2 of 2 checkpoints are whole" in found.output
    ended = run_tool("diff", tmp_path / "outputs", tmp_path / "outputs")
    assert (ended.code, "is a folder of 2 runs" in ended.errors) == (2, True), ended
