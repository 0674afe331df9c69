"""Weights that came from another format start a run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from ckptrun.__main__ import main
from tests.support.jobs import TINY, run_here, tensors

pytestmark = pytest.mark.distributed

JOB = (*TINY, "train.steps=2", "parallelism=fsdp", "launch.nproc=2")


def assert_torch_takes(state: dict[str, Any], saved: Path) -> None:
    """Parameters of the model's shapes, in the model's order, make an optimizer that takes the state over."""
    order = json.loads((saved / "manifest.json").read_text())["manifest"]["run"]["parameters"]
    assert order != sorted(order)
    groups = state["optimizer"]["param_groups"]
    decayed = [[name for name in order if (state["model"][name].dim() > 1) == is_matrix] for is_matrix in (True, False)]
    assert [group["param_names"] for group in groups] == decayed
    parameters = [[torch.nn.Parameter(torch.zeros_like(state["model"][name])) for name in names] for names in decayed]
    optimizer = torch.optim.AdamW([{"params": part} for part in parameters])
    optimizer.load_state_dict(state["optimizer"])
    for part, names in zip(parameters, decayed, strict=True):
        for parameter, name in zip(part, names, strict=True):
            assert optimizer.state[parameter]["exp_avg"].shape == parameter.shape, name


def test_a_model_goes_out_as_safetensors_and_comes_back_into_a_new_run(tmp_path, monkeypatch) -> None:
    assert run_here(tmp_path / "first", *JOB) == 0
    saved = tmp_path / "first/checkpoints/step_00000002"

    def convert(*arguments: str) -> None:
        monkeypatch.setattr("sys.argv", ["ckptrun", "convert", *arguments])
        assert main() == 0

    convert(str(saved), str(tmp_path / "model.safetensors"), "--to", "safetensors", "--only", "model")
    convert(str(saved), str(tmp_path / "state.pt"), "--to", "torch")
    assert_torch_takes(torch.load(tmp_path / "state.pt"), saved)
    edited = {f"model.{name}": tensor + 1 for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(edited, tmp_path / "edited.safetensors")
    convert(str(tmp_path / "edited.safetensors"), str(tmp_path / "edited"), "--to", "ckptrun")
    ended = run_here(tmp_path / "second", *JOB, f"checkpoint.load.from={tmp_path / 'edited'}", "optimizer.lr=0")
    assert ended == 0, ended
    assert "Started from" in ended.output
    found = tensors(tmp_path / "second/checkpoints/step_00000002")
    name = next(name for name in edited if edited[name].dim() == 2)
    parts = [raw for key, raw in sorted(found.items()) if key.endswith(f":{name}")]
    assert b"".join(parts) == edited[name].numpy().tobytes()
