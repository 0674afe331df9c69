"""One optimizer of a state in torch's own form: parameters have numbers, groups are a list."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptrun.engine.nested import place
from ckptrun.text import joined

__all__ = ["GROUPS", "PARAMS", "PARAM_NAMES", "STATE", "NumberedOptimizer", "Path"]

STATE, GROUPS, PARAMS, PARAM_NAMES = "state", "param_groups", "params", "param_names"

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class NumberedOptimizer:
    """One optimizer of a state."""

    prefix: Path
    """Where it stands."""
    groups: Mapping[str | int, int]
    """Name of a group -> its place."""
    params: Sequence[Sequence[str]]
    """Of each group, the names of its parameters, in order."""
    number_of: Mapping[str, int]
    is_ordered: bool
    """Whether the checkpoint says in which order the model has its parameters."""

    @property
    def has_names(self) -> bool:
        """Whether parameters have names, and not numbers already."""
        return not all(name.isdigit() for name in self.number_of)

    def begin(self, state: dict[str, Any]) -> None:
        """Make its place in a nested state: a dict whose keys are numbers, which may stay empty."""
        place(state, (*self.prefix, STATE), {})

    def finish(self, state: dict[str, Any]) -> None:
        """Add what no leaf says: the numbers of the parameters, and the names of groups."""
        found: Any = state
        for element in self.prefix:
            found = found[element]
        for (name, index), params in zip(self.groups.items(), self.params, strict=True):
            group = found[GROUPS][index]
            group[PARAMS] = [self.number_of[param] for param in params]
            if isinstance(name, str) and not re.fullmatch(r"(group_)?\d+", name):
                group.setdefault("name", name)

    def notes(self) -> Iterable[str]:
        """Yield what whoever loads it should know."""
        if self.has_names and not self.is_ordered:
            yield (
                "The checkpoint does not say in which order the model has its parameters: they are numbered by name. "
                "Give the optimizer its parameters in the order of 'param_names' in each group."
            )
        elif self.has_names and len(self.params) > 1:
            sizes = joined([f"{len(names):,}" for names in self.params])
            yield (
                f"The optimizer has {len(self.params)} groups, of {sizes} parameters; load_state_dict() wants one with "
                "the same groups. The names stand in each as 'param_names', in their order."
            )
