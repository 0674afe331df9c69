"""Leaves that are meant to differ from run to run (elapsed time, a host's name), and so are not compared. Torch-free.

Whoever exempts a leaf says its component: nothing can exempt everything by one stroke, a pattern that matches nothing
is an error, and each verdict says what it has not covered.
"""

import fnmatch
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from ckptrun.errors import ConfigError
from ckptrun.evidence.difference import component_of
from ckptrun.rank_names import rank_name

__all__ = ["Ignored"]

_Value = TypeVar("_Value")
_SHOWN = 3


class Ignored:
    """The patterns of ``proof.ignore``.

    Args:
        patterns: Such as ``timer.*``, or ``timer`` for all of it, of leaf names in full.
    """

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        self.patterns = tuple(patterns)

    def __bool__(self) -> bool:
        return bool(self.patterns)

    def covers(self, leaf: str) -> bool:
        """Whether ``leaf`` is exempt."""
        return any(_matches(leaf, pattern) for pattern in self.patterns)

    def counts(self, leaf: str) -> bool:
        """Whether ``leaf`` is compared."""
        return not self.covers(leaf)

    def counts_stream(self, stream: str, *, rank: int) -> bool:
        """Whether a random stream of ``rank``, as the ledger calls it, is compared."""
        leaf = f"rng.ranks.{rank_name(rank)}.{stream}"
        return not (self.covers(leaf) or self.covers(f"{leaf}.words"))

    def kept(self, leaves: Mapping[str, _Value]) -> dict[str, _Value]:
        """Leaf name -> value, without those that are exempt."""
        return {name: value for name, value in leaves.items() if self.counts(name)}

    def sentences(self, leaves: Collection[str]) -> list[str]:
        """Say what is not covered of ``leaves``, a sentence for each pattern."""
        return [self._sentence(pattern, sorted(leaves)) for pattern in self.patterns]

    def _sentence(self, pattern: str, leaves: Iterable[str]) -> str:
        found = [leaf for leaf in leaves if _matches(leaf, pattern)]
        if not found:
            return f"nothing: proof.ignore={pattern} matches no leaf"
        shown = ", ".join(found[:_SHOWN]) + (f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
        return f"{shown}: exempt from every comparison by proof.ignore={pattern}"

    def check_matched(self, leaves: Collection[str]) -> None:
        """Look whether every pattern matches one of ``leaves``, which are all that there are.

        Raises:
            ConfigError: One matches none.
        """
        for pattern in self.patterns:
            if not any(_matches(leaf, pattern) for leaf in leaves):
                component = component_of(pattern)
                own = sorted(leaf for leaf in leaves if component_of(leaf) == component)
                there = ", ".join(own[:_SHOWN]) + (" ..." if len(own) > _SHOWN else "")
                raise ConfigError(
                    f"proof.ignore={pattern} matches no leaf. The component {component!r} has {len(own)}"
                    f"{f': {there}' if own else ''}."
                )

    def check_some_left(self, leaves: Collection[str], *, needed: Collection[str]) -> None:
        """Look whether something is left to compare of each component in ``needed`` that has leaves.

        Raises:
            ConfigError: All leaves of one are exempt.
        """
        for component in needed:
            own = [leaf for leaf in leaves if component_of(leaf) == component]
            if own and all(map(self.covers, own)):
                raise ConfigError(
                    f"proof.ignore={list(self.patterns)} exempts all {len(own)} leaves of {component!r}, which decides "
                    "what the next step computes: nothing would be proved of it. Name single leaves."
                )


def _matches(leaf: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(leaf, pattern) or leaf.startswith(f"{pattern}.")
