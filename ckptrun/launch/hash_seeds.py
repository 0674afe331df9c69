"""In which interpreter, and with which hash seed, each start of a proof runs. Torch-free.

Processes that are forked from one server share what an interpreter draws at its start: the seed of ``hash()`` and with
it the order of sets of strings, the addresses of what is loaded, hence ``id()`` and the order of sets of objects, and
what has been imported before. A job that depends on them repeats itself until it is really started again. So the first
resume of a proof comes from a second server: an interpreter that was started by itself, with another seed, as that of a
command typed again would be. Both seeds are fixed: what depends on them shows every time, not every other time.
"""

import os

__all__ = ["hash_seed", "pinned_hash_seed"]

# Of seeds below 64, the two under which the order of most sets of two common words (train and val, a and b) is another.
_USUAL, _OTHER = "32", "45"


def pinned_hash_seed() -> str | None:
    """The seed that the user has set for every start of their job; None: none."""
    seed = os.environ.get("PYTHONHASHSEED", "random")
    return None if seed in ("", "random") else seed


def hash_seed(*, fresh: bool) -> str:
    """The seed of a start of a proof.

    Args:
        fresh: Whether the start runs in the other interpreter. Where the user has set a seed, it has that one, too.
    """
    return pinned_hash_seed() or (_OTHER if fresh else _USUAL)
