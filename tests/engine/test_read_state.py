"""A checkpoint is read into nothing, whole or in part, by whoever has the files."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from ckptrun.engine.manifest import Leaf
from ckptrun.engine.nested import place
from ckptrun.engine.read_chunks import torch_dtype
from ckptrun.engine.read_state import read_state
from ckptrun.engine.storage import ShardWriter
from ckptrun.errors import CheckpointNotFoundError, ManifestError, ShardFileError, StateMismatchError
from tests.support.bits import all_bits, flip, random_tensor
from tests.support.storage_backends import CountingBackend, on

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)")


@pytest.fixture
def state(tmp_path: Path) -> dict[str, Any]:
    state = {
        "model": {"w": random_tensor(torch.float32, (300, 40)), "b": random_tensor(torch.bfloat16, ())},
        "model_2": 5,
        "optimizer": {
            "state": {"w": {"exp_avg": torch.ones(3), "step": 4}},
            "param_groups": [{"lr": 0.1}, {"t": torch.ones(1)}],
        },
    }
    dcp.save(state, storage_writer=ShardWriter(tmp_path / "c"), no_dist=True)
    return state


def test_all_of_it_comes_back_nested(state: dict[str, Any], tmp_path: Path) -> None:
    assert all_bits(read_state(tmp_path / "c")) == all_bits(state)


@pytest.mark.parametrize(
    "keys", ["optimizer.state", ["optimizer.state"], ["optimizer.state.w.step", "optimizer.state.w"]]
)
def test_a_part_comes_back_alone(state: dict[str, Any], tmp_path: Path, keys: Any) -> None:
    assert all_bits(read_state(tmp_path / "c", keys)) == all_bits({"optimizer": {"state": state["optimizer"]["state"]}})


def test_a_key_is_a_whole_name(state: dict[str, Any], tmp_path: Path) -> None:
    assert list(read_state(tmp_path / "c", ["model"])) == ["model"]


def test_only_what_is_asked_for_is_read(state: dict[str, Any], tmp_path: Path) -> None:
    backend = CountingBackend()
    read_state(on(backend, tmp_path / "c"), ["optimizer.state"])
    assert backend.bytes_read == 4096 + 12
    read_state(on(backend, tmp_path / "c"), ["model_2"])
    assert backend.bytes_read == 4096 + 12


def test_an_unknown_key_is_named_with_what_there_is(state: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StateMismatchError, match=r"'optimizer.stat'.*model, model_2, optimizer") as error:
        read_state(tmp_path / "c", ["optimizer.stat", "model"])
    assert error.value.leaves == ("optimizer.stat",)


def test_no_checkpoint_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        read_state(tmp_path / "c")


def test_damage_is_an_error(state: dict[str, Any], tmp_path: Path) -> None:
    flip(tmp_path / "c" / "rank_00000.safetensors", 5000, bit=2)
    with pytest.raises(ShardFileError, match=r"'model.w'") as error:
        read_state(tmp_path / "c")
    assert error.value.leaf == "model.w"


def test_a_path_through_a_leaf_is_an_error_of_our_own() -> None:
    root: dict[str, Any] = {"a": 1}
    with pytest.raises(ManifestError, match="'b'"):
        place(root, ("a", "b"), 2)
    with pytest.raises(ManifestError, match="list"):
        place({"a": []}, ("a", "b"), 2)


def test_lists_are_filled_up_to_the_index() -> None:
    root: dict[str, Any] = {}
    place(root, ("a", 2, "x"), "late")
    place(root, ("a", 0), "early")
    assert root == {"a": ["early", None, {"x": "late"}]}


def test_a_dtype_that_this_torch_lacks_is_named() -> None:
    leaf = Leaf(name="w", path=("w",), dtype="float3", shape=(), value=None, digest=None, chunks=())
    with pytest.raises(StateMismatchError, match="'w' has dtype float3"):
        torch_dtype(leaf)
