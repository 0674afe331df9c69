"""``dcp.save`` and ``dcp.load`` give back what was saved, or refuse it by name before a byte is written."""

import logging
from collections import Counter, OrderedDict, defaultdict, namedtuple
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.checkpoint.filesystem import CURRENT_DCP_VERSION

from ckptrun import HostStager, ShardReader, ShardWriter
from ckptrun.engine.read_state import read_leaf, read_state
from ckptrun.errors import CheckpointExistsError, CkptrunError, UnsupportedLeafError
from ckptrun.values import encode
from tests.support.bits import all_bits

Pair = namedtuple("Pair", "a b")

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is unavailable:UserWarning")


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def save(state: dict[str, Any], folder: Path, how: str = "save") -> Any:
    if how == "save":
        return dcp.save(state, storage_writer=ShardWriter(folder), no_dist=True)
    stager = HostStager(cached=False)
    return dcp.async_save(state, storage_writer=ShardWriter(folder), async_stager=stager, no_dist=True).result(60)


def cause_of(error: BaseException) -> BaseException:
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def milestones(steps: list[int]) -> dict[str, Any]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=1.0)
    return torch.optim.lr_scheduler.MultiStepLR(optimizer, steps).state_dict()


GIVEN_BACK: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "int": ({"a": {0: 5, 1: 6}}, {"a": {0: -1, 1: -1}}),
    "beside tensors": ({"s": {0: {"n": 7, "m": torch.ones(2)}}}, {"s": {0: {"n": 0, "m": torch.zeros(2)}}}),
    "bool": ({"a": {True: 5}}, {"a": {True: -1}}),
    "None": ({"a": {None: 5}}, {"a": {None: -1}}),
    "float": ({"a": {1.5: 5}}, {"a": {1.5: -1}}),
    "tuple": ({"a": {(0, 1): {"b": 5}}}, {"a": {(0, 1): {"b": -1}}}),
    "bytes": ({"a": {b"k": [1]}}, {"a": {b"k": []}}),
    "in a list": ({"a": [{1: 5, "t": torch.ones(1)}]}, {"a": [{1: 0, "t": torch.zeros(1)}]}),
    "schedule": ({"schedule": milestones([3, 5, 5])}, {"schedule": milestones([3, 5])}),
    "ordered": ({"a": OrderedDict(z=1, b=2)}, {"a": OrderedDict(b=0, z=0)}),
    "order of a dict": ({"a": {"z": 1, "b": torch.ones(1)}}, {"a": {"b": torch.zeros(1), "z": 0}}),
    "kinds in a leaf": ({"a": (Counter("aab"), OrderedDict(z=1, b=2), defaultdict(int, x=1))}, {"a": None}),
    "tensors in a tuple": ({"a": (torch.tensor(0.9), [torch.arange(3), 1])}, {"a": (torch.zeros(()), 0)}),
    "a tuple of bits": ({"a": (torch.tensor([0.1, -0.0], dtype=torch.bfloat16), torch.ones(0, 3))}, {"a": ()}),
}


@pytest.mark.parametrize("how", ["save", "async_save"])
@pytest.mark.parametrize("case", GIVEN_BACK)
def test_a_value_comes_back_at_its_own_place_as_what_it_was(case: str, how: str, tmp_path: Path) -> None:
    saved, live = (torch.utils._pytree.tree_map(lambda leaf: leaf, part) for part in GIVEN_BACK[case])
    expected = repr(saved)
    save(saved, tmp_path / "c", how)
    dcp.load(live, storage_reader=ShardReader(tmp_path / "c"), no_dist=True)
    assert repr(live) == expected
    assert type(live.get("a")) is type(saved.get("a"))


@pytest.mark.parametrize(
    "value",
    [
        10**4300,
        [1, {"n": -(10**9000)}],
        ({"n": 10**5000},),
        [Pair(1, 2)],
        Pair(torch.ones(1), 2),
        (defaultdict(lambda: 0),),
        [type("Mine", (dict,), {})()] * 0 + [(type("Mine", (dict,), {})(a=1),)],
        (torch.zeros(2**19),),
        (torch.zeros(1, device="meta"),),
        lambda: 0,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_would_not_come_back_is_refused_by_name_and_leaves_nothing(value: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointException) as caught:
        save({"w": torch.ones(3), "of": {"mine": value}}, tmp_path / "c")
    cause = cause_of(caught.value)
    assert isinstance(cause, UnsupportedLeafError)
    assert "of.mine" in str(cause)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bare", [torch.empty(2, device="meta"), torch.nn.Linear(2, 2, device="meta").weight])
def test_the_stager_names_a_leaf_without_data(bare: torch.Tensor) -> None:
    with pytest.raises(UnsupportedLeafError, match=r"'stage_2\.weight'.*meta"):
        HostStager().stage({"stage_1": {"weight": torch.ones(2)}, "stage_2": {"weight": bare}})


def test_the_stager_names_a_value_that_cannot_be_copied() -> None:
    with pytest.raises(UnsupportedLeafError, match=r"'a\.lock'.*generator"):
        HostStager().stage({"a": {"lock": (n for n in range(3))}})


def test_what_cannot_go_to_the_process_that_saves_is_named() -> None:
    staged = HostStager(cached=False, shared=True).stage({"a": {"f": lambda: 0}, "w": torch.ones(2)})
    there = ForkingPickler.loads(ForkingPickler.dumps(staged))
    assert torch.equal(there["w"], torch.ones(2))
    # The save that comes upon it fails there, on all ranks alike.
    with pytest.raises(UnsupportedLeafError, match=r"'a\.f'.*function"):
        encode(there["a"]["f"], name="a.f")
    with pytest.raises(UnsupportedLeafError, match=r"'a\.f'.*function"):
        create_default_local_save_plan({"a.f": there["a"]["f"]}, is_coordinator=True)


def test_an_optimizer_with_tensor_betas_comes_back(tmp_path: Path) -> None:
    def make(beta: float) -> torch.optim.Adam:
        parameter = torch.nn.Parameter(torch.ones(2))
        betas: Any = (torch.tensor(beta), torch.tensor(0.99))
        return torch.optim.Adam([parameter], lr=torch.tensor(0.1), betas=betas, capturable=True, foreach=False)

    save({"o": make(0.5).state_dict()}, tmp_path / "c")
    live = make(0.25)
    state = {"o": live.state_dict()}
    dcp.load(state, storage_reader=ShardReader(tmp_path / "c"), no_dist=True)
    live.load_state_dict(state["o"])
    assert repr(live.param_groups[0]["betas"]) == "(tensor(0.5000), tensor(0.9900))"
    assert repr(read_leaf(tmp_path / "c", "o.param_groups.0.betas")) == "(tensor(0.5000), tensor(0.9900))"
    assert repr(read_state(tmp_path / "c", ["o.param_groups"])["o"]["param_groups"][0]["betas"][0]) == "tensor(0.5000)"


def test_dcp_is_told_version_and_ids_and_a_refusal_in_its_own_words(tmp_path: Path) -> None:
    returned = save({"a": 1}, tmp_path / "c")
    reader = ShardReader(tmp_path / "c")
    read = reader.read_metadata()
    for metadata in (returned, read):
        assert metadata.version == CURRENT_DCP_VERSION
        assert metadata.storage_meta.checkpoint_id == str(tmp_path / "c")
        assert len(metadata.storage_meta.save_id) == 32
    assert returned.storage_meta.save_id == read.storage_meta.save_id
    assert read.storage_meta.load_id != ShardReader(tmp_path / "c").read_metadata().storage_meta.load_id
    with pytest.raises(CheckpointException, match="Checkpoint already exists") as caught:
        save({"a": 2}, tmp_path / "c")
    assert isinstance(cause_of(caught.value), CheckpointExistsError)
    assert isinstance(cause_of(caught.value), CkptrunError)


def test_keys_stay_in_the_order_of_the_live_dict_where_nothing_was_saved_of_them(tmp_path: Path) -> None:
    save({"a": {"z": 1, "b": 2}}, tmp_path / "c")
    live = {"a": {"own": (), "b": 0, "z": 0}}
    planner = dcp.DefaultLoadPlanner(allow_partial_load=True)
    dcp.load(live, storage_reader=ShardReader(tmp_path / "c"), planner=planner, no_dist=True)
    assert list(live["a"].items()) == [("own", ()), ("z", 1), ("b", 2)]
    assert all_bits(live) == all_bits({"a": {"own": (), "z": 1, "b": 2}})
