"""What DCP takes is stored and comes back bit for bit, on one rank without a process group; the rest is refused by name."""

import dataclasses
import io
import json
import pickle
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict, _load_state_dict_from_keys

from ckptrun.engine.backends.interface import Location
from ckptrun.engine.backends.local import LocalBackend
from ckptrun.engine.backends.system_calls import SystemCalls
from ckptrun.engine.commit import list_committed, remove_checkpoint
from ckptrun.engine.layout import MANIFEST, step_folder
from ckptrun.engine.manifest import read_manifest
from ckptrun.engine.storage import ShardReader, ShardWriter
from ckptrun.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    ManifestError,
    ShardFileError,
    StateMismatchError,
    UnsupportedLeafError,
)
from tests.support.bits import all_bits, bits, flip, random_tensor
from tests.support.storage_backends import FaultyBackend, on
from tests.support.through_dcp import failed, load, save

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is (disabled|unavailable)"),
    pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental"),
]

FILE = "rank_00000.safetensors"
DTYPES = [
    "float64 float32 float16 bfloat16 float8_e4m3fn float8_e4m3fnuz float8_e5m2 float8_e5m2fnuz float8_e8m0fnu",
    "float4_e2m1fn_x2 complex32 complex64 complex128 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool",
]


class Counter:
    """A stateful object of a user's own."""

    def __init__(self) -> None:
        self.count, self.weights, self.extra = 0, torch.zeros(3), b""

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "weights": self.weights, "extra": self.extra}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.extra = state["count"], state["extra"]


@pytest.mark.parametrize("name", " ".join(DTYPES).split())
def test_every_dtype_comes_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    tensor = random_tensor(getattr(torch, name), (6, 4))
    save({"w": tensor, "zero_dim": tensor[0, 0].clone(), "column": tensor[:, 1]}, tmp_path)
    column = torch.empty(6, 2, dtype=tensor.dtype)[:, 0]
    into = {"w": torch.empty_like(tensor), "zero_dim": torch.empty_like(tensor[0, 0]), "column": column}
    load(into, tmp_path)
    assert all_bits(into) == all_bits({"w": tensor, "zero_dim": tensor[0, 0], "column": tensor[:, 1].contiguous()})
    assert read_manifest(tmp_path).leaves["w"].dtype == name
    with safe_open(tmp_path / FILE, "pt") as file:
        assert file.get_tensor("w").contiguous().view(-1).view(torch.uint8).numpy().tobytes() == bits(tensor)[2]


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float8_e5m2"])
def test_nan_payloads_and_negative_zero_survive_strange_layouts(name: str, tmp_path: Path) -> None:
    dtype = getattr(torch, name)
    tensor = random_tensor(dtype, (64, 32), seed=1)
    assert tensor.float().isnan().any()
    save({"w": tensor.t(), "step": tensor[::3, ::5]}, tmp_path)
    into = {"w": torch.empty(64, 32, dtype=dtype).t(), "step": torch.empty(7, 22, dtype=dtype).t()}
    load(into, tmp_path)
    assert bits(into["w"]) == bits(tensor.t())
    assert bits(into["step"]) == bits(tensor[::3, ::5])


def test_of_a_view_only_its_own_elements_are_stored(tmp_path: Path) -> None:
    whole = random_tensor(torch.float32, (1000, 1000))
    save({"row": whole[3], "expanded": torch.ones(1).expand(5)}, tmp_path)
    into = {"row": torch.empty(1000), "expanded": torch.empty(5)}
    load(into, tmp_path)
    assert bits(into["row"]) == bits(whole[3])
    assert bits(into["expanded"]) == bits(torch.ones(5))
    assert (tmp_path / FILE).stat().st_size < 10_000


def test_conjugated_and_negated_views_are_stored_as_they_read(tmp_path: Path) -> None:
    tensor = torch.complex(torch.arange(4.0), torch.arange(4.0) - 7)
    save({"conj": tensor.conj(), "imag": tensor.conj().imag}, tmp_path)
    into = {"conj": torch.empty(4, dtype=torch.complex64).conj(), "imag": torch.empty(4)}
    load(into, tmp_path)
    assert torch.equal(into["conj"].resolve_conj(), tensor.conj().resolve_conj())
    assert torch.equal(into["imag"], tensor.conj().imag.resolve_neg())


def test_nested_states_plain_values_and_objects_come_back(tmp_path: Path) -> None:
    def state(value: float) -> dict[str, Any]:
        return {
            "nested": {"a": [{"w": torch.full((2,), value)}, {"b": value}], "bytes": bytes([int(value)]), "none": None},
            "floats": [value, -0.0, float("inf"), float("nan")],
            "betas": (0.9, value),
            "step": 10**30 + int(value),
            "flag": value > 1,
            "text": "ümläut \x00" + str(value),
            "ints": ("keys", {3: "three", 4: value}),
            "empty": [],
            "scalar": torch.tensor(value),
            "nothing": torch.empty(0, 7),
        }

    save(state(5.0), tmp_path)
    into = state(1.0)
    load(into, tmp_path)
    assert all_bits(into) == all_bits(state(5.0))


def test_a_stateful_object_is_loaded_in_place(tmp_path: Path) -> None:
    saved, loaded = Counter(), Counter()
    saved.count, saved.weights, saved.extra = 7, torch.tensor([1.0, 2.0, 3.0]), b"\x00\xff"
    folder = tmp_path / "a run with spaces" / "step_00000001"
    save({"counter": saved}, folder)
    memory, into = loaded.weights, {"counter": loaded}
    load(into, folder)
    assert into["counter"] is loaded
    assert (loaded.count, loaded.extra) == (7, b"\x00\xff")
    assert torch.equal(memory, saved.weights)


def test_a_tensor_is_loaded_into_its_own_memory(tmp_path: Path) -> None:
    save({"w": torch.arange(10.0)}, tmp_path)
    weight = torch.nn.Parameter(torch.zeros(10))
    load({"w": weight}, tmp_path)
    assert torch.equal(weight.detach(), torch.arange(10.0))


def test_a_state_of_plain_values_only_is_a_checkpoint(tmp_path: Path) -> None:
    save({"step": 3}, tmp_path / "c")
    into = {"step": 0}
    load(into, tmp_path / "c")
    assert into == {"step": 3}


def test_a_planner_that_does_not_flatten_works(tmp_path: Path) -> None:
    state = {"a.w": torch.ones(3), "a.value": [1, {"x": 2}]}
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    save(state, tmp_path, planner, paths={"a.w": ("a", "w")})
    into = {"a.w": torch.zeros(3), "a.value": None}
    load(into, tmp_path, DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False))
    assert all_bits(into) == all_bits(state)
    leaves = read_manifest(tmp_path).leaves
    assert (leaves["a.w"].path, leaves["a.value"].path) == (("a", "w"), ("a.value",))


def test_a_planner_of_ones_own_gets_plain_values_as_bytes_that_torch_reads(tmp_path: Path) -> None:
    class Own(DefaultLoadPlanner):
        def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
            self.original_state_dict["got"] = (read_item.dest_index.fqn, torch.load(value, weights_only=True))

    save({"values": [1, 2.5, b"x"]}, tmp_path)
    into: dict[str, Any] = {"values": None}
    dcp.load(into, storage_reader=ShardReader(tmp_path), planner=Own(), no_dist=True)
    assert into["values"] is None
    state: dict[str, Any] = {"values": None}
    planner = Own()
    _load_state_dict(state, storage_reader=ShardReader(tmp_path), no_dist=True, planner=planner)
    assert state["got"] == ("values", [1, 2.5, b"x"])


def test_no_pickle_is_written(tmp_path: Path) -> None:
    save({"w": torch.ones(3), "values": [1, (2.0, b"x")], "more": {"a": {1: 2}}}, tmp_path)
    for file in tmp_path.iterdir():
        assert not zipfile.is_zipfile(file)
        assert not any(raw in file.read_bytes() for raw in (b"torch._utils", b"collections\n", pickle.PROTO + b"\x02"))


def test_a_manifest_that_would_run_code_when_unpickled_is_only_read_as_json(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (tmp_path / "executed").touch, ()

    save({"x": 1}, tmp_path / "c")
    (tmp_path / "c" / MANIFEST).write_bytes(pickle.dumps(Evil()))
    assert isinstance(failed(load, {"x": 0}, tmp_path / "c"), ManifestError)
    assert not (tmp_path / "executed").exists()


def test_a_part_is_loaded_by_key_into_nothing(tmp_path: Path) -> None:
    state = {
        "model": {"w": torch.ones(2)},
        "optimizer": {"state": {"w": {"exp_avg": torch.arange(2.0), "step": 3}}, "param_groups": [{"lr": 0.1}]},
    }
    save(state, tmp_path)
    found = _load_state_dict_from_keys("optimizer.state", storage_reader=ShardReader(tmp_path))
    assert all_bits(found) == all_bits({"optimizer": {"state": state["optimizer"]["state"]}})
    assert all_bits(_load_state_dict_from_keys(storage_reader=ShardReader(tmp_path))) == all_bits(state)


def test_tied_tensors_are_recorded(tmp_path: Path) -> None:
    weight, flat = torch.ones(4, 4), torch.ones(8)
    save(
        {"head": weight, "embedding": {"w": weight}, "left": flat[:4], "right": flat[4:], "other": torch.ones(4, 4)},
        tmp_path,
    )
    assert read_manifest(tmp_path).shared == (("embedding.w", "head"),)


def test_digests_paths_and_facts_of_the_run_land_in_the_manifest(tmp_path: Path) -> None:
    save(
        {"a": {"w": torch.ones(2)}, "n": 1},
        tmp_path,
        digests={"a.w": "12ab", "n": "34cd"},
        paths={"a.w": ("a", "sub", 0)},
        run={"step": 20, "mesh": {"shard": 2}},
    )
    manifest = read_manifest(tmp_path)
    assert {name: leaf.digest for name, leaf in manifest.leaves.items()} == {"a.w": "12ab", "n": "34cd"}
    assert manifest.leaves["a.w"].path == ("a", "sub", 0)
    assert (manifest.run, manifest.world_size, manifest.torch) == (
        {"step": 20, "mesh": {"shard": 2}},
        1,
        torch.__version__,
    )


def test_torchs_own_hugging_face_reader_loads_the_model_from_the_folder(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4))
    save({"model": model.state_dict(), "step": 3}, tmp_path)
    into = {"model": {name: torch.zeros_like(value) for name, value in model.state_dict().items()}}
    dcp.load(into, storage_reader=HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert all_bits(into["model"]) == all_bits(dict(model.state_dict()))


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, lambda: None, io.StringIO("x"), torch.float32, (torch.ones(2**19),)]
)
def test_what_needs_pickle_is_refused_by_name_before_a_byte_is_written(value: Any, tmp_path: Path) -> None:
    error = failed(save, {"w": torch.ones(3), "mine": {"bad": value}}, tmp_path / "run" / "c")
    assert isinstance(error, UnsupportedLeafError)
    assert "'mine.bad'" in str(error)
    assert type(value).__name__ in str(error)
    assert [path for path in tmp_path.rglob("*") if path.is_file() or "step" in path.name] == []


@pytest.mark.parametrize("hook", ["transform_object", "lookup_object"])
def test_what_a_planner_changes_on_the_way_is_what_is_stored(tmp_path: Path, hook: str) -> None:
    def changed(self: Any, *args: Any) -> Any:
        value = getattr(DefaultSavePlanner, hook)(self, *args)
        return value + 1 if isinstance(value, Tensor) else value

    planner = type("Planner", (DefaultSavePlanner,), {hook: changed})()
    dcp.save({"w": torch.ones(3)}, storage_writer=ShardWriter(tmp_path / "c"), planner=planner, no_dist=True)
    into = {"w": torch.zeros(3)}
    load(into, tmp_path / "c")
    assert into["w"].tolist() == [2.0] * 3


class NotingPlanner(DefaultSavePlanner):
    """Puts something of its own into the metadata, as DCP's documentation of planners shows it."""

    def __init__(self, note: Any) -> None:
        super().__init__()
        self.note = note

    def create_global_plan(self, all_plans: list[SavePlan]) -> tuple[list[SavePlan], Metadata]:
        plans, metadata = super().create_global_plan(all_plans)
        return plans, dataclasses.replace(metadata, planner_data=self.note)


@pytest.mark.parametrize("note", [["per rank"], {"w": ("w",), "step": 3}, {"a": {"b": (1, b"c")}}, 0, ""])
def test_what_a_planner_wants_to_find_again_is_there_for_its_load(note: Any, tmp_path: Path) -> None:
    save({"w": torch.ones(2), "n": {"m": 1}}, tmp_path / "c", NotingPlanner(note))
    reader = DefaultLoadPlanner()
    live = {"w": torch.zeros(2), "n": {"m": 0}}
    load(live, tmp_path / "c", reader)
    assert all_bits(live) == all_bits({"w": torch.ones(2), "n": {"m": 1}})
    assert reader.metadata is not None
    assert reader.metadata.planner_data == note


def test_what_a_planner_wants_to_find_again_and_needs_pickle_fails_the_save(tmp_path: Path) -> None:
    error = failed(save, {"w": torch.ones(2)}, tmp_path / "c", NotingPlanner([{1}]))
    assert isinstance(error, UnsupportedLeafError)
    assert "planner_data" in str(error)
    assert list(tmp_path.glob("c/*")) == []


def test_streams_of_bytes_come_back_where_they_stood(tmp_path: Path) -> None:
    """A state dict that DCP takes: what torch.save wrote, as a leaf."""
    stream = io.BytesIO()
    torch.save([0.5, 0.25], stream)
    save({"losses": stream, "w": torch.ones(1)}, tmp_path)
    into: dict[str, Any] = {"losses": io.BytesIO(), "w": torch.zeros(1)}
    load(into, tmp_path)
    assert into["losses"].tell() == stream.tell()
    into["losses"].seek(0)
    assert torch.load(into["losses"]) == [0.5, 0.25]


def test_an_empty_state_is_a_checkpoint_too(tmp_path: Path) -> None:
    save({}, tmp_path / "a")
    load({}, tmp_path / "a")
    save({"foo": {}, "bar": []}, tmp_path / "b")
    assert read_manifest(tmp_path / "b").files == {}
    load({"foo": {}, "bar": []}, tmp_path / "b")


def test_a_tuple_that_holds_a_large_tensor_is_refused_with_the_way_out(tmp_path: Path) -> None:
    error = failed(save, {"mine": {"pair": (torch.ones(2**19), {"x": 1})}}, tmp_path)
    assert "'mine.pair'" in str(error)
    assert "2097152 bytes in a tuple" in str(error)
    assert "Use a list or a dict" in str(error)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(2, 2).to_sparse(), "layout torch.sparse_coo"),
        (torch.empty(2, device="meta"), "meta device"),
        (torch.empty(2, dtype=torch.uint8).view(torch.uint4), "torch.uint4"),
    ],
)
def test_tensors_without_plain_bytes_are_refused_by_name(tensor: Tensor, message: str, tmp_path: Path) -> None:
    error = failed(save, {"mine": {"bad": tensor}}, tmp_path / "c")
    assert isinstance(error, UnsupportedLeafError)
    assert "'mine.bad'" in str(error)
    assert message in str(error)
    assert list(tmp_path.iterdir()) == []


def test_the_name_that_safetensors_keeps_for_itself_is_refused(tmp_path: Path) -> None:
    assert isinstance(failed(save, {"__metadata__": torch.ones(1)}, tmp_path), UnsupportedLeafError)


def test_a_committed_checkpoint_is_replaced_only_when_asked(tmp_path: Path) -> None:
    url = tmp_path / "step_00000001"
    save({"w": torch.zeros(3)}, url)
    error = failed(save, {"w": torch.ones(3)}, url)
    assert isinstance(error, CheckpointExistsError)
    assert str(url) in str(error)
    assert "overwrite=True" in str(error)
    save({"w": torch.ones(3)}, url, overwrite=True)
    into = {"w": torch.full((3,), 9.0)}
    load(into, url)
    assert torch.equal(into["w"], torch.ones(3))
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_checkpoint_in_memory_is_saved_replaced_and_loaded(tmp_path: Path) -> None:
    url = f"memory://{tmp_path.name}/step_00000001"
    for value in (1.0, 2.0):
        save({"w": torch.full((5,), value), "n": value}, url, overwrite=True)
        into = {"w": torch.zeros(5), "n": None}
        load(into, url)
        assert (into["w"].tolist(), into["n"]) == ([value] * 5, value)
    assert list_committed(f"memory://{tmp_path.name}") == [1]


def test_the_root_of_a_file_system_holds_checkpoints_too() -> None:
    step = 987_654_321
    save({"w": torch.ones(2)}, step_folder("memory://", step))
    assert step in list_committed("memory://")
    remove_checkpoint("memory://", step)
    assert step not in list_committed("memory://")


def test_one_writer_serves_several_saves_one_after_the_other(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "unused")
    for step in range(2):
        dcp.save({"n": step}, storage_writer=writer, checkpoint_id=str(tmp_path / f"step_{step:08d}"), no_dist=True)
    assert list_committed(tmp_path) == [0, 1]


def test_cached_plans_neither_mix_saves_nor_hide_a_new_dtype(tmp_path: Path) -> None:
    def state(value: float, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
        return {"w": torch.full((4,), value, dtype=dtype), "lr": value}

    for step in range(3):
        save(state(float(step)), tmp_path / f"step_{step:08d}", DefaultSavePlanner(enable_plan_caching=True))
    for step in range(3):
        into = state(9.0)
        load(into, tmp_path / f"step_{step:08d}")
        assert all_bits(into) == all_bits(state(float(step)))
    error = failed(
        save, state(5.0, torch.int32), tmp_path / "step_00000003", DefaultSavePlanner(enable_plan_caching=True)
    )
    assert isinstance(error, CheckpointError)
    assert "'w' is torch.int32" in str(error)
    assert list_committed(tmp_path) == [0, 1, 2]


def test_saving_without_agreement_between_ranks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="use_collectives=False"):
        dcp.save({"n": 1}, storage_writer=ShardWriter(tmp_path), no_dist=True, use_collectives=False)


def test_a_full_disk_fails_the_save_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    save({"w": torch.ones(3)}, tmp_path / "step_00000001")
    error = failed(save, {"w": torch.zeros(3)}, on(FaultyBackend("rank_"), tmp_path / "step_00000002"))
    assert isinstance(error, OSError)
    assert "No space left" in str(error)
    assert list_committed(tmp_path) == [1]
    into = {"w": torch.zeros(3)}
    load(into, tmp_path / "step_00000001")
    assert torch.equal(into["w"], torch.ones(3))


@pytest.mark.parametrize("target", [torch.zeros(3, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.int32)])
def test_another_dtype_is_an_error_that_names_leaf_and_dtypes(target: Tensor, tmp_path: Path) -> None:
    save({"a": {"w": torch.ones(3)}}, tmp_path)
    error = failed(load, {"a": {"w": target}}, tmp_path)
    assert isinstance(error, StateMismatchError)
    assert error.leaves == ("a.w",)
    assert "'a.w'" in str(error)
    assert str(target.dtype).removeprefix("torch.") in str(error)
    assert "float32" in str(error)
    assert not target.any()


def test_another_shape_is_an_error_that_names_leaf_and_shapes(tmp_path: Path) -> None:
    save({"a": {"w": torch.ones(3)}}, tmp_path)
    message = str(failed(load, {"a": {"w": torch.zeros(4)}}, tmp_path))
    assert "a.w" in message
    assert "[3]" in message
    assert "[4]" in message


def test_a_missing_leaf_is_named(tmp_path: Path) -> None:
    save({"a": {"w": torch.ones(3)}}, tmp_path)
    assert "a.missing" in str(failed(load, {"a": {"w": torch.ones(3), "missing": 1}}, tmp_path))


@pytest.mark.parametrize(("saved", "live"), [(torch.ones(1), 1.0), (1.0, torch.ones(1))])
def test_a_tensor_is_never_taken_for_a_plain_value(saved: Any, live: Any, tmp_path: Path) -> None:
    save({"step": saved}, tmp_path)
    assert "step" in str(failed(load, {"step": live}, tmp_path))


def damage_data(folder: Path) -> None:
    flip(folder / FILE, bit=4)


def cut_data(folder: Path) -> None:
    (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-1])


def remove_data(folder: Path) -> None:
    (folder / FILE).unlink()


def other_version(folder: Path) -> None:
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes().replace(b'"format": 1', b'"format": 2'))


def damage_manifest(folder: Path) -> None:
    flip(folder / MANIFEST, (folder / MANIFEST).stat().st_size // 2)


def remove_manifest(folder: Path) -> None:
    (folder / MANIFEST).unlink()


def file_of_another_save(folder: Path) -> None:
    save({"w": torch.full((3,), 1.0)}, folder.parent / "other")
    (folder / FILE).write_bytes((folder.parent / "other" / FILE).read_bytes())


@pytest.mark.parametrize(
    ("damage", "kind", "words"),
    [
        (damage_data, ShardFileError, [FILE, "'w'", "checksum"]),
        (cut_data, ShardFileError, [FILE, "'w'", "4107 bytes", "4108"]),
        (remove_data, ShardFileError, [FILE, "'w'", "missing"]),
        (file_of_another_save, ShardFileError, [FILE, "'w'", "header"]),
        (other_version, ManifestError, [MANIFEST, "format", "1", "2"]),
        (damage_manifest, ManifestError, [MANIFEST, "checksum"]),
        (remove_manifest, CheckpointNotFoundError, [MANIFEST]),
    ],
)
def test_each_damage_is_an_error_of_its_own(damage: Any, kind: type, words: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "step_00000007"
    save({"w": torch.ones(3)}, folder)
    damage(folder)
    error = failed(load, {"w": torch.zeros(3)}, folder)
    assert type(error) is kind
    assert [word for word in ["step_00000007", *words] if word not in str(error)] == []


def test_metadata_that_cannot_be_read_raises_as_soon_as_it_is_used(tmp_path: Path) -> None:
    metadata = ShardReader(tmp_path).read_metadata()
    with pytest.raises(CheckpointNotFoundError):
        _ = metadata.state_dict_metadata


def test_writer_and_reader_accept_what_they_can_open() -> None:
    for cls in (ShardWriter, ShardReader):
        assert cls.validate_checkpoint_id("/a b/c")
        assert cls.validate_checkpoint_id("memory://x")
        assert not cls.validate_checkpoint_id("nosuchprotocol://x")


def test_a_writer_pickles_with_all_that_it_was_given(tmp_path: Path) -> None:
    writer = pickle.loads(pickle.dumps(ShardWriter(tmp_path / "c", run={"step": 4}, digests={"n": "ab"})))
    dcp.save({"n": 1}, storage_writer=writer, no_dist=True)
    assert read_manifest(tmp_path / "c").run == {"step": 4}
    assert read_manifest(tmp_path / "c").leaves["n"].digest == "ab"


def test_fault_points_are_reached_in_order(tmp_path: Path) -> None:
    points: list[str] = []
    save({"w": torch.ones(3)}, tmp_path / "c", reached=points.append)
    save({"w": torch.ones(3)}, tmp_path / "c", reached=points.append, overwrite=True)
    first = ["before_write", "writing", "after_write", "before_manifest", "before_commit", "after_commit"]
    assert points == [*first, *first[:-1], "during_swap", "after_commit"]


def test_large_tensors_are_read_without_a_second_copy_of_the_state(tmp_path: Path) -> None:
    """Through the backend: no buffer other than the target's own memory is filled."""
    save({"w": torch.ones(1000, 1000)}, tmp_path)
    targets: list[int] = []

    class Watching(SystemCalls):
        def preadv(self, descriptor: int, buffers: Sequence[memoryview], offset: int) -> int:
            if offset:
                targets.extend(torch.frombuffer(buffer, dtype=torch.uint8).data_ptr() for buffer in buffers)
            return super().preadv(descriptor, buffers, offset)

    into = {"w": torch.zeros(1000, 1000)}
    load(into, Location(LocalBackend(Watching()), str(tmp_path)))
    begin = into["w"].data_ptr()
    assert min(targets) == begin
    assert all(begin <= target < begin + into["w"].nbytes for target in targets)


def test_the_manifest_is_for_people_too(tmp_path: Path) -> None:
    save({"w": torch.ones(3), "lr": 0.5}, tmp_path)
    lines = (tmp_path / MANIFEST).read_text().splitlines()
    (line,) = [line for line in lines if '"lr"' in line]
    assert json.loads(line.rstrip(","))["value"] == 0.5
