"""What a user may have meant by a name that is not there. Must not print."""

import difflib
from collections.abc import Collection

from ckptrun.evidence.difference import component_of
from ckptrun.text import joined

__all__ = ["near_names"]

_SHOWN = 5


def near_names(name: str, names: Collection[str]) -> str:
    """Return a sentence about the names that are closest to ``name``, or that begin with it."""
    below = [other for other in names if other.startswith(f"{name}.")]
    if below:
        return f"It holds {len(below):,} leaves: {joined(below, _SHOWN)}."
    ending = [other for other in names if other.endswith(f".{name}")]
    near = ending or difflib.get_close_matches(name, names, n=_SHOWN, cutoff=0.5)
    if near:
        return f"Near to it: {joined(near, _SHOWN)}."
    top = sorted(set(map(component_of, names)))
    return f"Names begin with: {joined(top, _SHOWN)}." if top else "There is no leaf at all."
