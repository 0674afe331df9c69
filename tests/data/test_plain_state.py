from collections import Counter, OrderedDict, UserDict, defaultdict

import numpy as np
import pytest
import torch

from ckptrun.data.plain_state import from_plain, to_plain
from ckptrun.errors import UnsupportedLeafError
from ckptrun.values import decode, encode


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, np.ndarray | np.generic):
        return type(one) is type(other) and one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other


def test_what_a_dataset_keeps_comes_back_with_type_and_bits():
    state = {
        "generator": torch.Generator().get_state(),
        "half": torch.tensor([[1.5, -0.0]], dtype=torch.bfloat16),
        "nothing": torch.empty(0, 3),
        "scalar": torch.tensor(7),
        "numpy": np.random.RandomState(3).get_state(),
        "count": np.int32(4),
        3: [(1, 2.5), None, b"x"],
        "empty": {},
    }
    stored = decode(encode(to_plain(state, name="data"), name="data"), name="data")
    assert same(from_plain(stored), state)


def test_the_plain_form_shares_no_memory():
    tensor, array = torch.zeros(2), np.zeros(2)
    plain = to_plain([tensor, array], name="data")
    tensor += 1
    array += 1
    back = from_plain(plain)
    assert back[0].tolist() == [0, 0]
    assert back[1].tolist() == [0, 0]
    back[0] += 1
    assert from_plain(plain)[0].tolist() == [0, 0]


@pytest.mark.parametrize(
    ("state", "leaf"),
    [
        ({"a": {1, 2}}, "data.a"),
        ({"a": [object()]}, "data.a.0"),
        ({"a": {1j: 1}}, "data.a"),
        ({"a": [UserDict()]}, "data.a.0"),
        ({"a": {"ckptrun.tensor": 1}}, "data.a"),
    ],
)
def test_what_cannot_be_stored_is_named(state, leaf):
    with pytest.raises(UnsupportedLeafError, match=f"Leaf '{leaf}'"):
        to_plain(state, name="data")


def test_a_dict_comes_back_as_the_kind_it_was_with_its_keys_in_order() -> None:
    state = {
        "seen": Counter({5: 2, None: 1}),
        "lru": OrderedDict(z=torch.ones(1), a=1),
        "by": defaultdict(list, {1.5: [2]}),
    }
    back = from_plain(decode(encode(to_plain(state, name="data"), name="data"), name="data"))
    assert repr(back) == repr(state)
