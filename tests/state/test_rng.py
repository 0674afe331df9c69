"""Random streams: captured, restored, told apart by rank."""

import random

import numpy as np
import pytest
import torch

from ckptrun.errors import StateMismatchError
from ckptrun.state import RNG, preserved, seed_streams


def draw() -> tuple:
    return random.random(), random.gauss(0, 1), float(np.random.normal()), torch.rand(3).tolist(), torch.randn(1).item()


def test_restored_streams_repeat_what_came_next() -> None:
    seed_streams(1)
    draw()
    state = RNG(rank=2).state_dict()
    expected = [draw(), draw()]
    RNG(rank=2).load_state_dict(state)
    assert [draw(), draw()] == expected


def test_captured_state_does_not_move_with_the_streams() -> None:
    seed_streams(1)
    state = RNG(rank=0).state_dict()
    before = state["ranks"]["rank_00000"]["torch_cpu"].clone()
    draw()
    assert torch.equal(state["ranks"]["rank_00000"]["torch_cpu"], before)


def test_streams_differ_by_seed_and_rank_and_repeat_for_the_same() -> None:
    drawn = []
    for seeds in ((0, 0), (0, 1), (1, 0), (0, 0)):
        seed_streams(*seeds)
        drawn.append(draw())
    assert drawn[0] == drawn[3]
    for index in range(5):
        assert len({str(values[index]) for values in drawn[:3]}) == 3


def test_preserved_leaves_every_stream_as_it_was() -> None:
    seed_streams(3)
    expected = draw()
    seed_streams(3)
    with pytest.raises(ZeroDivisionError), preserved():
        draw()
        raise ZeroDivisionError
    assert draw() == expected


def test_another_ranks_streams_are_refused() -> None:
    state = RNG(rank=0).state_dict()
    with pytest.raises(StateMismatchError, match="rank_00001"):
        RNG(rank=1).load_state_dict(state)


def test_a_missing_stream_is_refused_by_name() -> None:
    state = RNG(rank=0).state_dict()
    del state["ranks"]["rank_00000"]["numpy"]
    with pytest.raises(StateMismatchError) as caught:
        RNG(rank=0).load_state_dict(state)
    assert caught.value.leaves == ("rng.ranks.rank_00000.numpy",)
