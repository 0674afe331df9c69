"""What two checkpoints differ in, component by component, and which leaf is the worst. Must not print."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ckptrun.elements.apart import Apart
from ckptrun.evidence.difference import component_of
from ckptrun.tools.leaf_difference import apart_json

if TYPE_CHECKING:
    from ckptrun.tools.compare import Comparison
    from ckptrun.tools.leaf_difference import LeafDifference

__all__ = ["ComponentSummary", "number_text", "summarise", "worst_first"]


@dataclass(slots=True)
class ComponentSummary:
    """One component: what stands before the first dot of its leaves' names."""

    name: str
    equal: int = 0
    differing: int = 0
    only_in_a: int = 0
    only_in_b: int = 0
    not_compared: int = 0
    elements: int = 0
    """That differ, of leaves of the same shape and dtype."""
    apart: Apart | None = None
    largest_ulp: int | None = None
    nans: int = 0

    def add(self, difference: "LeafDifference") -> None:
        """Count a leaf that differs."""
        self.differing += 1
        found, elements = difference.apart, difference.elements
        if elements is not None:
            found = elements.apart
            self.elements += elements.differing
            self.nans += elements.nans
            self.largest_ulp = max((u for u in (self.largest_ulp, elements.largest_ulp) if u is not None), default=None)
        self.apart = self.apart if found is None else found | self.apart

    def to_row(self) -> list[str]:
        """Return it as a person reads it."""
        ulp = "" if self.largest_ulp is None else f"{self.largest_ulp:,}"
        return [
            self.name,
            *(f"{count:,}" if count else "" for count in (self.equal, self.differing, self.only_in_a, self.only_in_b)),
            f"{self.elements:,}" if self.elements else "",
            number_text(None if self.apart is None else self.apart.absolute),
            number_text(None if self.apart is None else self.apart.relative),
            ", ".join(text for text in (ulp, f"{self.nans:,} NaN" if self.nans else "") if text),
        ]

    def to_json(self) -> dict[str, Any]:
        """Return it for ``--json``."""
        return {
            "component": self.name,
            "equal": self.equal,
            "differing": self.differing,
            "only_in_a": self.only_in_a,
            "only_in_b": self.only_in_b,
            "not_compared": self.not_compared,
            "differing_elements": self.elements,
            "largest_ulp": self.largest_ulp,
            "nans": self.nans,
            **apart_json(self.apart),
        }


def number_text(number: float | None) -> str:
    """Return a difference with three digits; nothing where there is none."""
    return "" if number is None else f"{number:.3g}"


def summarise(found: "Comparison") -> list[ComponentSummary]:
    """Return the components, in the order in which they first come."""
    summaries: dict[str, ComponentSummary] = {}

    def of(name: str) -> ComponentSummary:
        component = component_of(name)
        return summaries.setdefault(component, ComponentSummary(component))

    for name in found.names:
        of(name)
    for attribute in ("equal", "only_in_a", "only_in_b", "not_compared"):
        for name in getattr(found, attribute):
            summary = of(name)
            setattr(summary, attribute, getattr(summary, attribute) + 1)
    for difference in found.differing:
        of(difference.leaf).add(difference)
    return list(summaries.values())


def worst_first(differences: "Iterable[LeafDifference]") -> "Iterator[LeafDifference]":
    """Yield the differences, the worst first."""
    yield from sorted(differences, key=lambda difference: difference.badness, reverse=True)
