"""Which of several components that differ is nearest to the cause. Torch-free."""

from collections.abc import Sequence

__all__ = ["BLAME_ORDER", "nearness"]

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


def nearness(component: str) -> int:
    """Return the place of a component in :data:`BLAME_ORDER`."""
    return BLAME_ORDER.index(component if component in BLAME_ORDER else _USERS_OWN)
