"""What a job writes: besides what the probe sees at each step, averages, teachers, running statistics of its own.

Each tensor in a file that a job saves is compared with what the reference wrote there after the same step. What the
first start, which had loaded nothing, wrote otherwise too (a time, a number of the process) does not repeat itself, and
is left out. Torch-free.
"""

import re
from collections.abc import Mapping

from ckptrun.foreign.alignment import digests_at
from ckptrun.foreign.checkpoints import committed_name, step_of
from ckptrun.foreign.records import HeardRank

__all__ = ["WRITTEN", "Written", "blame_of", "not_repeated", "written_by"]

WRITTEN = "written."
"""What names of such leaves begin with."""

Written = Mapping[int, Mapping[str, str]]
"""Step -> leaf -> digest."""


def written_by(rank: HeardRank, *, first_step: int) -> Written:
    """What a rank wrote after each step: all tensors, by where they are in which file."""
    found: dict[int, dict[str, str]] = {}
    for save in rank.saves:
        step = step_of(save, rank)
        # Of what is written in the background it must be known from its content which step it is of.
        is_known = not save.in_background or not digests_at(rank, step).isdisjoint(save.content.values())
        if step > 0 and save.is_done and is_known:
            # A flat one is weights.
            top = "" if save.is_resumable else "model."
            file = re.sub(r"\d+", "#", committed_name(save, rank))
            named = {f"{WRITTEN}{top}{key} in {file}": digest for key, digest in save.content.items()}
            found.setdefault(first_step + step, {}).update(named)
    return found


def not_repeated(one: Written, other: Written) -> set[str]:
    """Leaves that two runs, to which nothing had happened yet, have written otherwise after the same step."""
    return {
        leaf
        for step in one.keys() & other.keys()
        for leaf in one[step].keys() & other[step].keys()
        if one[step][leaf] != other[step][leaf]
    }


def blame_of(leaf: str) -> str:
    """What the job itself calls the part of a checkpoint that a leaf belongs to."""
    return leaf.removeprefix(WRITTEN).partition(".")[0].partition(" in ")[0]
