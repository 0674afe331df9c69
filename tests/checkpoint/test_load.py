"""Saving and loading whole states through the manager: what must be there, what must fit, who loads when."""

import pytest
import torch
import torch.distributed as dist

from ckptrun.checkpoint.load import Loaded, load
from ckptrun.checkpoint.manager import CheckpointManager, conflicts_of, digest_state
from ckptrun.checkpoint.policy import KeepLast
from ckptrun.config.checkpoint import LoadSelection, SaveMode
from ckptrun.engine.manifest import read_manifest
from ckptrun.engine.staging import HostStager
from ckptrun.errors import CheckpointError, ConfigError, StateMismatchError
from ckptrun.ranks import Ranks
from ckptrun.state.components import AnyObject, TrainingState
from tests.support.opened_files import opened_files
from tests.support.run_ranks import run_ranks


class Holder:
    """Holds a nested dict; fills tensors in place, replaces plain values."""

    def __init__(self, **state) -> None:
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state) -> None:
        self.state = dict(state)


def manager(root, mode: SaveMode = SaveMode.sync, group=None, stager=None) -> CheckpointManager:
    return CheckpointManager(
        str(root), mode=mode, keep=KeepLast(count=None), ranks=Ranks(), saving_group=group, stager=stager, facts={}
    )


def save(root, step: int = 1, **components) -> TrainingState:
    state = TrainingState(components)
    manager(root).save(state, step)
    return state


def load_into(root, selection: LoadSelection | None = None, step: int = 1, **components) -> Loaded:
    state = TrainingState(components)
    folder = f"{root}/step_{step:08d}"
    return load(state, folder, ranks=Ranks(), group=None, selection=selection or LoadSelection())


def test_state_comes_back_without_a_process_group(tmp_path) -> None:
    saved = save(
        tmp_path, a=Holder(x=torch.randn(3), n=1, deep={"b": b"bytes", "f": [1.5, -0.0], "e": {}}), rng=Holder(r=2)
    )
    fresh = TrainingState({"a": Holder(x=torch.zeros(3), n=0, deep={"b": b"", "f": [], "e": {}}), "rng": Holder(r=0)})
    loaded = load(fresh, f"{tmp_path}/step_00000001", ranks=Ranks(), group=None, selection=LoadSelection())
    assert digest_state(fresh.leaves()) == digest_state(saved.leaves()) == loaded.digests
    assert loaded.step == 1
    assert loaded.left_out == ()


def test_tensors_are_filled_in_place_and_plain_values_replaced(tmp_path) -> None:
    save(tmp_path, a=Holder(x=torch.ones(3), n=1))
    x = torch.zeros(3)
    holder = Holder(x=x, n=0)
    load_into(tmp_path, a=holder)
    assert holder.state["x"] is not x or torch.equal(x, torch.ones(3))
    assert torch.equal(x, torch.ones(3))
    assert holder.state["n"] == 1


@pytest.mark.parametrize(
    ("live", "words", "leaves"),
    [
        ({"x": torch.zeros(3), "n": 0, "more": 1}, ["does not hold", "a.more"], ("a.more",)),
        ({"x": torch.zeros(3)}, ["no place", "a.n"], ("a.n",)),
        ({"x": torch.zeros(3, dtype=torch.float64), "n": 0}, ["a.x", "float64", "float32"], ("a.x",)),
        ({"x": torch.zeros(4), "n": 0}, ["a.x", "(4,)", "(3,)"], ("a.x",)),
        ({"x": 3, "n": 0}, ["a.x", "plain value", "tensor"], ("a.x",)),
    ],
    ids=["missing", "unexpected", "dtype", "shape", "kind"],
)
def test_a_leaf_that_does_not_fit_is_named_and_nothing_is_loaded(live, words, leaves, tmp_path) -> None:
    save(tmp_path, a=Holder(x=torch.ones(3), n=1))
    holder = Holder(**live)
    before = digest_state(TrainingState({"a": holder}).leaves())
    with pytest.raises(StateMismatchError) as caught:
        load_into(tmp_path, a=holder)
    assert caught.value.leaves == leaves
    for word in words:
        assert word in str(caught.value)
    assert digest_state(TrainingState({"a": holder}).leaves()) == before


def test_an_objects_wrong_dtype_is_named_even_if_its_leaves_may_come_and_go(tmp_path) -> None:
    save(tmp_path, a=Holder(x=torch.ones(3)))
    with pytest.raises(StateMismatchError, match=r"a\.x.*dtype"):
        load_into(tmp_path, a=AnyObject(Holder(x=torch.zeros(3, dtype=torch.bfloat16))))


@pytest.mark.parametrize(
    ("selection", "loaded"),
    [
        (LoadSelection(only=("model",)), {"model"}),
        (LoadSelection(exclude=("optimizer",)), {"model", "data"}),
        (LoadSelection(only=("model", "data"), exclude=("data",)), {"model"}),
    ],
    ids=["only", "exclude", "both"],
)
def test_a_part_is_loaded_and_the_rest_left_alone(selection, loaded, tmp_path) -> None:
    names = ("data", "model", "optimizer")
    save(tmp_path, **{name: Holder(x=torch.ones(2)) for name in names})
    holders = {name: Holder(x=torch.zeros(2)) for name in names}
    result = load_into(tmp_path, selection, **holders)
    assert {name for name in names if holders[name].state["x"].sum() == 2} == loaded
    assert set(result.left_out) == set(names) - loaded


def test_an_unknown_component_in_the_selection_is_named(tmp_path) -> None:
    save(tmp_path, model=Holder(n=1))
    with pytest.raises(ConfigError, match=r"checkpoint\.load\.only.*'modle'.*model"):
        load_into(tmp_path, LoadSelection(only=("modle",)), model=Holder(n=0))


@pytest.mark.parametrize("side", ["saved", "live"])
def test_a_component_that_only_one_side_has_is_named_with_the_way_out(side, tmp_path) -> None:
    both, extra = {"model": Holder(n=1)}, {"ema": Holder(n=2)}
    save(tmp_path, **both, **(extra if side == "saved" else {}))
    with pytest.raises(StateMismatchError, match=r"ema.*checkpoint\.load\.exclude=\[ema\]"):
        load_into(tmp_path, **both, **(extra if side == "live" else {}))


def test_a_new_head_and_an_old_head_must_be_named(tmp_path) -> None:
    save(tmp_path, model=Holder(body=torch.ones(1), old=torch.ones(1)))
    live = {"model": Holder(body=torch.zeros(1), new=torch.zeros(1))}
    allowed = LoadSelection(only=("model",), source="x", allow_missing=("new",), allow_extra=("model.old",))
    for selection in (
        LoadSelection(only=("model",), source="x", allow_missing=("new",)),
        LoadSelection(only=("model",), source="x", allow_extra=("old",)),
    ):
        with pytest.raises(StateMismatchError, match="allow_"):
            load_into(tmp_path, selection, **live)
    assert load_into(tmp_path, allowed, **live).digests.keys() == {"model.body"}


def test_a_save_into_a_committed_step_is_refused(tmp_path) -> None:
    save(tmp_path, a=Holder(n=1))
    with pytest.raises(CheckpointError, match="step_00000001"):
        save(tmp_path, a=Holder(n=2))


def _orders(root: str) -> list:
    """A component that reduces over ranks while it loads, on ranks that know their components in another order."""

    class Reducing(Holder):
        def __init__(self, factor: int) -> None:
            super().__init__(x=torch.zeros(2), key=factor)
            self.sum = 0

        def load_state_dict(self, state) -> None:
            total = torch.tensor([float(state["key"])])
            dist.all_reduce(total)
            self.sum = int(total)

    names = ["first", "second", "rng"]
    order = names if dist.get_rank() == 0 else names[::-1]
    components = {name: Reducing(10 ** names.index(name)) for name in order}
    group = dist.new_group(backend="gloo")
    CheckpointManager(
        root, mode=SaveMode.sync, keep=KeepLast(count=None), ranks=Ranks(), saving_group=group, stager=None, facts={}
    ).save(TrainingState(components), 1)
    load(TrainingState(components), f"{root}/step_00000001", ranks=Ranks(), group=group, selection=LoadSelection())
    return [components[name].sum for name in names]


@pytest.mark.distributed
def test_components_in_another_order_on_each_rank_load_together(tmp_path) -> None:
    assert run_ranks(_orders, 2, str(tmp_path)) == [[2, 20, 200], [2, 20, 200]]


def _train_on(root: str, mode: str, overlapped: bool) -> list:
    """Change everything as soon as the manager allows it; what was requested must be in the file."""
    group = dist.new_group(backend="gloo")
    stager = HostStager(cached=True, overlapped=overlapped, shared=mode == "async_process")
    saver = CheckpointManager(
        root, mode=SaveMode(mode), keep=KeepLast(count=None), ranks=Ranks(), saving_group=group, stager=stager, facts={}
    )
    own = f"rank_{dist.get_rank():05d}"
    torch.manual_seed(dist.get_rank())
    holder = Holder(shared=torch.full((300_000,), 1.0), ranks={own: torch.randn(1000)}, n=0)
    requested = []
    for step in (1, 2, 3):
        holder.state["n"] = step
        saver.save(TrainingState({"a": holder}), step)
        saver.wait_staged()
        with torch.no_grad():
            holder.state["shared"] += 1
            holder.state["ranks"][own] *= 2
        saver.poll()
    saver.close()
    requested = []
    for step in (1, 2, 3):
        fresh = Holder(shared=torch.zeros(300_000), ranks={own: torch.zeros(1000)}, n=-1)
        state = TrainingState({"a": fresh})
        loaded = load(state, f"{root}/step_{step:08d}", ranks=Ranks(), group=group, selection=LoadSelection())
        same = digest_state(state.leaves()) == loaded.digests
        requested.append(
            (same, fresh.state["n"], float(fresh.state["shared"].min()), float(fresh.state["shared"].max()))
        )
    return requested


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("mode", "overlapped"),
    [("async_thread", False), ("async_thread", True), pytest.param("async_process", True, marks=pytest.mark.slow)],
)
def test_training_on_does_not_change_what_was_requested(mode, overlapped, tmp_path) -> None:
    expected = [(True, step, float(step), float(step)) for step in (1, 2, 3)]
    assert run_ranks(_train_on, 2, str(tmp_path), mode, overlapped, fresh=True) == [expected, expected]


def _conflict(root: str) -> tuple:
    state = TrainingState({"a": Holder(x=torch.full((2,), float(dist.get_rank())), same=torch.ones(1))})
    saver = CheckpointManager(
        root, mode=SaveMode.sync, keep=KeepLast(count=None), ranks=Ranks(), saving_group=dist.new_group(backend="gloo"),
        stager=None, facts={},
    )  # fmt: skip
    saver.save(state, 1)
    return saver.last_commit.request.replica_conflicts


@pytest.mark.distributed
def test_replicas_that_differ_at_the_request_are_named_and_the_first_counts(tmp_path) -> None:
    assert run_ranks(_conflict, 2, str(tmp_path)) == [("a.x",), ("a.x",)]
    first = digest_state(TrainingState({"a": Holder(x=torch.zeros(2))}).leaves())["a.x"]
    assert read_manifest(tmp_path / "step_00000001").leaves["a.x"].digest == first


def _holders(root: str) -> tuple:
    """Ranks that hold different leaves, of one of which both have a replica."""
    mine = dist.get_rank()
    own = {f"rank_{mine:05d}": {"n": mine}, "common": torch.full((2,), float(mine)), f"only_{mine}": torch.ones(1)}
    state = TrainingState({"a": Holder(**own)})
    return tuple(conflicts_of(digest_state(state.leaves()), state, Ranks()))


@pytest.mark.distributed
def test_replicas_are_compared_where_ranks_hold_different_leaves(tmp_path) -> None:
    assert run_ranks(_holders, 2, str(tmp_path)) == [("a.common",), ("a.common",)]


def _read_on_ranks(root: str) -> list[str]:
    state = TrainingState({"a": Holder(x=torch.zeros(3), n=0)})
    with pytest.MonkeyPatch.context() as patched:
        opened = opened_files(patched)
        load(state, f"{root}/step_00000001", ranks=Ranks(), group=None, selection=LoadSelection())
    assert torch.equal(state.components["a"].state["x"], torch.ones(3))
    return [path.rpartition("/")[2] for path in opened]


@pytest.mark.distributed
def test_one_rank_reads_the_manifest_once_for_all(tmp_path) -> None:
    save(tmp_path, a=Holder(x=torch.ones(3), n=1))
    shard = "rank_00000.safetensors"
    assert run_ranks(_read_on_ranks, 2, str(tmp_path)) == [["manifest.json", shard], [shard]]
