"""The model as a component: complete, strict, in place."""

import pytest
import torch
from torch import nn

from ckptrun.errors import StateMismatchError
from ckptrun.parallelism.model_state import load_model_state, model_state
from ckptrun.parallelism.naming import find_ties
from tests.parallelism.training import KINDS, Recipe, Run, bits, cloned, local
from tests.support.run_ranks import run_ranks


class Odd(nn.Module):
    """Everything that a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.register_buffer("absent", None)
        self.calls = 0

    def get_extra_state(self):
        return {"calls": self.calls}

    def set_extra_state(self, state):
        self.calls = state["calls"]


@pytest.fixture
def odd():
    return Odd()


def _state(model: nn.Module) -> dict:
    return model_state(model, find_ties(model))


def _load(model: nn.Module, state: dict) -> None:
    load_model_state(model, find_ties(model), state)


def test_state_has_every_parameter_buffer_and_extra_state(odd):
    assert set(_state(odd)) == {"embedding.weight", "head.weight", "hidden", "_extra_state"}


def test_state_is_live(odd):
    _state(odd)["embedding.weight"].fill_(3)
    assert odd.head.weight.unique().tolist() == [3.0]


def test_a_tied_tensor_is_one_object_under_both_names(odd):
    state = _state(odd)
    assert state["embedding.weight"] is state["head.weight"]


def test_loading_fills_in_place_and_keeps_ties(odd):
    saved = cloned(_state(odd)) | {"hidden": torch.ones(2), "_extra_state": {"calls": 7}}
    before = odd.embedding.weight
    other = Odd()
    _load(other, saved)
    _load(odd, saved)
    assert odd.embedding.weight is before
    assert other.head.weight is other.embedding.weight
    assert torch.equal(other.head.weight, odd.head.weight)
    assert other.hidden.tolist() == [1.0, 1.0]
    assert other.calls == 7


def test_loading_the_live_state_itself_changes_nothing(odd):
    before = cloned(_state(odd))
    _load(odd, _state(odd))
    assert torch.equal(before["embedding.weight"], odd.embedding.weight)


def test_missing_and_unexpected_leaves_are_named(odd):
    state = cloned(_state(odd))
    state["extra.weight"] = state.pop("hidden")
    with pytest.raises(StateMismatchError, match=r"lacks 'hidden'.*no place for 'extra\.weight'") as caught:
        _load(odd, state)
    assert caught.value.leaves == ("hidden", "extra.weight")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(2, dtype=torch.float64), r"'hidden' of the model is float32 \(2,\), .* holds float64 \(2,\)"),
        (torch.zeros(3), r"holds float32 \(3,\)"),
        (1.0, "holds a float"),
    ],
)
def test_another_dtype_shape_or_type_is_refused_by_name(odd, value, message):
    with pytest.raises(StateMismatchError, match=message):
        _load(odd, cloned(_state(odd)) | {"hidden": value})


def test_a_refused_state_changes_nothing(odd):
    before = cloned(_state(odd))
    wrong = {name: torch.full_like(value, 9) for name, value in before.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(StateMismatchError):
        _load(odd, wrong | {"_extra_state": {"calls": 7}, "hidden": torch.zeros(3)})
    assert torch.equal(before["embedding.weight"], odd.embedding.weight)
    assert odd.calls == 0


def test_different_values_for_one_tied_tensor_are_refused(odd):
    state = cloned(_state(odd))
    state["head.weight"] = state["head.weight"] + 1
    with pytest.raises(StateMismatchError, match=r"'embedding\.weight' and 'head\.weight' are one tied tensor"):
        _load(odd, state)


def _change(model: nn.Module) -> None:
    model.register_buffer("hidden", torch.arange(3.0), persistent=False)


def _under_each_kind(kinds: tuple[str, ...]) -> dict:
    return {kind: _facts(kind) for kind in kinds}


def _facts(kind: str) -> dict:
    run = Run(Recipe(kind=kind, tied=True), change=_change)
    run.step(0)
    held = run.held()
    # What a reader of checkpoints does: fill the very tensors of the state, then hand them in.
    state = run.model.state_dict()
    for tensor in state.values():
        local(tensor).fill_(3)
    run.model.load_state_dict(state)
    filled = run.model.state_dict()
    return {
        "hidden": "hidden" in held,
        "one": filled["head.weight"] is filled["token_embedding.weight"],
        "filled": {float(value) for tensor in filled.values() for value in local(tensor).reshape(-1)},
        "evaluated": _evaluated(run),
    }


def _evaluated(run: Run) -> bool:
    """Whether the state is the same after a forward without a backward."""
    before = {name: bits(tensor) for name, tensor in run.model.state_dict().items()}
    with torch.no_grad():
        run.model.module(run.batch(0)[0])
    return before == {name: bits(tensor) for name, tensor in run.model.state_dict().items()}


@pytest.fixture(scope="module")
def facts():
    return run_ranks(_under_each_kind, 4, KINDS, timeout_s=240)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_filling_the_tensors_of_the_state_and_loading_them_reaches_the_model(facts, kind):
    assert [rank[kind]["filled"] for rank in facts] == [{3.0}] * 4


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_buffers_that_are_not_persistent_and_ties(facts, kind):
    assert all(rank[kind]["hidden"] and rank[kind]["one"] for rank in facts)


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_the_same_after_a_forward_without_backward(facts, kind):
    assert all(rank[kind]["evaluated"] for rank in facts)
