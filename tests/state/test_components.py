"""State as named leaves: flattening, names, load order, objects whose leaves come and go."""

from collections import Counter, OrderedDict, UserDict, defaultdict, namedtuple

import pytest
import torch

from ckptrun.checkpoint.policy import KeepLast, SaveInterval
from ckptrun.errors import StateMismatchError, UnsupportedLeafError
from ckptrun.rank_names import rank_of
from ckptrun.state.components import AnyObject, SavedLeaf, TrainingState, flatten, is_per_rank, unflatten

Pair = namedtuple("Pair", "a b")


class Parts:
    def __init__(self, state) -> None:
        self.state = state
        self.loaded: list = []

    def state_dict(self):
        return self.state

    def load_state_dict(self, state) -> None:
        self.loaded.append(state)


NESTED = {
    "a": {"b.c": torch.ones(2), "n": 3},
    "list": [torch.zeros(1), {"x": torch.ones(1)}, 4],
    "plain": [1, [2.5], {"k": None}],
    "ints": {0: torch.ones(1), -7: "seven"},
    "keys": {None: torch.ones(1), True: 1, 1.5: 2, (0, "a"): 3, b"x": 4, "#": 5, "#one": 6, "1": 7},
    "ordered": OrderedDict(z=torch.ones(1), a=OrderedDict()),
    "counts": Counter({5: 2, 3: 1}),
    "defaults": [defaultdict(list, {"x": [torch.ones(1)], "y": []}), torch.ones(1)],
    "pair": (torch.ones(1), (torch.zeros(1), {"k": OrderedDict(b=1)})),
    "empty": {},
    "none": None,
}


def test_unflatten_undoes_flatten() -> None:
    containers: dict = {}
    leaves = flatten(NESTED, (), containers)
    assert repr(unflatten(leaves, containers)) == repr(NESTED)


def test_a_list_with_a_missing_element_is_refused() -> None:
    leaves = flatten({"list": [torch.zeros(1), torch.ones(1)]})
    del leaves["list", 0]
    with pytest.raises(StateMismatchError, match="list"):
        unflatten(leaves)


@pytest.mark.parametrize("value", [{"#1": 2}, {"#None": 2}, {float("nan"): 1}, {1j: 1}, {"t": Pair(torch.ones(1), 2)}, {"u": UserDict(a=1)},
     {"d": defaultdict(lambda: 0, a=torch.ones(1))}])  # fmt: skip
def test_what_cannot_be_named_is_refused(value) -> None:
    with pytest.raises(UnsupportedLeafError, match=r"'part(\.[tud])?'"):
        flatten({"part": value})


def test_two_leaves_of_one_name_are_refused_by_name() -> None:
    state = TrainingState({"part": Parts({"a.b": 1, "a": {"b": 2}})})
    with pytest.raises(StateMismatchError) as caught:
        state.leaves()
    assert caught.value.leaves == ("part.a.b",)


def test_rng_is_loaded_last_whatever_the_order() -> None:
    order = []

    class Noting(Parts):
        def load_state_dict(self, state) -> None:
            order.append(self.state["name"])

    state = TrainingState({name: Noting({"name": name}) for name in ("rng", "model", "data")})
    state.load(state.leaves())
    assert order == ["data", "model", "rng"]


def test_a_component_without_loaded_leaves_is_left_alone() -> None:
    one, two = Parts({"x": 1}), Parts({"x": 2})
    TrainingState({"one": one, "two": two}).load({("two", "x"): 5})
    assert one.loaded == []
    assert two.loaded == [{"x": 5}]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("rng", "ranks", "rank_00003", "python"), 3),
        (("data", "ranks", "data_rank_00012"), 12),
        (("rng", "rank_00000"), 0),
        (("model", "rank_embedding"), None),
        (("model", "rank_3"), None),
        (("model", "rank_00003x"), None),
    ],
)
def test_per_rank_leaves_are_told_by_a_path_element(path, expected) -> None:
    assert rank_of(path) == expected
    assert is_per_rank(path) is (expected is not None)


def test_any_object_gets_room_for_leaves_that_only_the_checkpoint_has() -> None:
    live = torch.zeros(2)
    saved = [
        SavedLeaf(path=("here",), dtype=torch.float32, shape=(2,)),
        SavedLeaf(path=("history", 0), dtype=torch.int16, shape=(3,)),
        SavedLeaf(path=("note",), value="kept"),
    ]
    template = AnyObject(Parts({"here": live})).template(saved)
    assert template["here"] is not live, "a load that does nothing would seem to work"
    assert template["here"].shape == live.shape
    assert template["history"][0].dtype == torch.int16
    assert template["note"] == "kept"


@pytest.mark.parametrize(
    ("live", "saved_path", "expected"),
    [
        ({"losses": []}, ("losses", 0), {"losses": [torch.float32]}),
        ({"losses": [torch.zeros(1), torch.zeros(1)]}, ("losses",), {"losses": torch.float32}),
        ({"grown": torch.zeros(1)}, ("grown",), {"grown": torch.float32}),
    ],
    ids=["filled", "emptied", "resized"],
)
def test_any_object_may_have_been_smaller_or_larger_when_it_was_saved(live, saved_path, expected) -> None:
    template = AnyObject(Parts(live)).template([SavedLeaf(path=saved_path, dtype=torch.float32, shape=(3,))])
    kinds = {
        key: [item.dtype for item in value] if isinstance(value, list) else value.dtype
        for key, value in template.items()
    }
    assert kinds == expected


def test_any_objects_leaf_that_was_not_saved_stays_in_the_template_to_be_missed() -> None:
    template = AnyObject(Parts({"here": 1, "only_live": 2})).template([SavedLeaf(path=("here",), value=5)])
    assert template == {"here": 5, "only_live": 2}


def test_saves_are_due_at_the_interval_and_at_the_last_step() -> None:
    policy = SaveInterval(interval_steps=20, last_step=50)
    assert [step for step in range(1, 51) if policy.should_save(step)] == [20, 40, 50]


@pytest.mark.parametrize(
    ("count", "steps", "expected"),
    [
        (None, [1, 2, 3], []),
        (1, [1, 2, 3], [1, 2]),
        (2, [3, 1, 2], [1]),
        (5, [1, 2], []),
        (1, [], []),
        (0, [1, 2], [1]),
    ],
)
def test_the_newest_checkpoint_is_never_removed(count, steps, expected) -> None:
    assert KeepLast(count=count).to_remove(steps, newest=3) == expected


def test_steps_of_another_continuation_neither_go_nor_count() -> None:
    assert KeepLast(count=1).to_remove([2, 4, 5, 10], newest=5) == [2, 4]
