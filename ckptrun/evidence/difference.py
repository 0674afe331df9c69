"""The first thing that two runs, two checkpoints or a state and its checkpoint do not agree on. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

__all__ = ["Difference", "component_of"]

_ALWAYS = ("step", "rank", "component", "leaf", "index", "expected", "got", "ulp")


def component_of(leaf: str) -> str:
    """Return the component of a leaf, by the leaf's name."""
    return leaf.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Where it is, and what stands there; what is not known, or has no meaning, is None."""

    step: int | None = None
    rank: int | None = None
    """Whose leaf it is; None where it is no rank's own."""
    component: str | None = None
    leaf: str | None = None
    """A leaf, or what else differs, in words."""
    index: Sequence[int] | None = None
    """Of the element, in the full tensor."""
    expected: Any = None
    """What should be there: a value, or a digest."""
    got: Any = None
    ulp: int | None = None
    """How many representable numbers lie between the two."""
    details: Mapping[str, Any] = field(default_factory=dict)
    """What else is known: ``expected_bits``, ``got_bits``, ``entry``; of an operation ``what``, ``part``,
    ``operation`` and ``ledger``."""

    @classmethod
    def of_leaf(
        cls, leaf: str | None, *, step: int | None, rank: int | None, expected: Any = None, got: Any = None
    ) -> Self:
        """Return that of a leaf, by its name; None: of none."""
        component = None if leaf is None else component_of(leaf)
        return cls(step=step, rank=rank, component=component, leaf=leaf, expected=expected, got=got)

    def with_details(self, **details: Any) -> Self:
        """Return the same with more that is known of it."""
        return replace(self, details={**self.details, **details})

    def as_json(self) -> dict[str, Any]:
        """As it stands in ``verdict.json`` and in ``events.jsonl``."""
        index = None if self.index is None else list(self.index)
        return {**{name: getattr(self, name) for name in _ALWAYS}, "index": index, **self.details}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Undo :meth:`as_json`."""
        known = {name: content.get(name) for name in _ALWAYS}
        return cls(**known, details={name: value for name, value in content.items() if name not in _ALWAYS})
