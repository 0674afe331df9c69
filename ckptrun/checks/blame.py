"""Which component a difference is about, and which of several differences is nearest to the cause. Torch-free."""

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["BLAME_ORDER", "component_of", "difference_of", "nearness"]

_USERS_OWN = "*"

BLAME_ORDER: Sequence[str] = (
    "model",
    "optimizer",
    "schedule",
    "scaler",
    "ema",
    _USERS_OWN,
    "data",
    "rng",
    "progress",
)
"""Components, the nearest cause of a wrong result first; ``*`` stands for a user's own.

What a run is for are its weights. What they came from in the last step comes next: moments, learning rate, loss scale;
then averages of them, and what users add. At the end of a run a difference in data or random streams alone explains no
wrong weight any more: had it been there when it mattered, the weights would differ too. So those come last, and are
blamed where nothing else differs: then they are what went wrong, and later steps would show it.

Of differences at the end of a run this tells which matters, not which was there first. That is for the checks that
look at a restored state before its first step, and for the ledger.
"""


def component_of(leaf: str) -> str:
    """Return the component of a leaf, by the leaf's name."""
    return leaf.partition(".")[0]


def nearness(component: str) -> int:
    """Return the place of a component in :data:`BLAME_ORDER`."""
    return BLAME_ORDER.index(component if component in BLAME_ORDER else _USERS_OWN)


def difference_of(
    leaf: str | None, *, step: int | None, rank: int | None, expected: Any, got: Any, **found: Any
) -> Mapping[str, Any]:
    """Return a difference in the form of ``verdict.json``; what is not in ``found`` is None.

    Args:
        leaf: None where it is about none.
        step: Of the checkpoint.
        rank: Whose leaf it is; None where it is no rank's own.
        expected: What should be there.
        got: What is there.
        found: ``index``, ``ulp``, and more.
    """
    component = None if leaf is None else component_of(leaf)
    about = {"step": step, "rank": rank, "component": component, "leaf": leaf, "index": None}
    return about | {"expected": expected, "got": got, "ulp": None} | found
