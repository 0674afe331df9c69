"""The state of an optimizer as ``torch.optim.Optimizer.load_state_dict`` takes it, made from one that goes by names.

A checkpoint has ``state.<parameter>.<key>``, ``param_groups.<group>.<option>`` and the names of a group's parameters as
``params``: names are the same on every mesh. torch wants numbers: ``state[number][key]``, a list of groups, and in each
the numbers of its parameters, counted through all groups. The numbers follow the order of the parameters in the model,
which a run notes in the manifest; the names stand beside them, as ``param_names``. Must not know which optimizer it is.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ckptrun.engine.nested import place
from ckptrun.formats.common.interface import SourceLeaf
from ckptrun.formats.common.selection import Item, Selection
from ckptrun.text import joined

__all__ = ["NumberedOptimizer", "number_optimizers"]

_STATE, _GROUPS, _PARAMS, _NAMES = "state", "param_groups", "params", "param_names"

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
        place(state, (*self.prefix, _STATE), {})

    def finish(self, state: dict[str, Any]) -> None:
        """Add what no leaf says: the numbers of the parameters, and the names of groups."""
        found: Any = state
        for element in self.prefix:
            found = found[element]
        for (name, index), params in zip(self.groups.items(), self.params, strict=True):
            group = found[_GROUPS][index]
            group[_PARAMS] = [self.number_of[param] for param in params]
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


def number_optimizers(selection: Selection) -> Selection:
    """Return the selection with the leaves of each optimizer where torch wants them; others are left as they are."""
    prefixes = dict.fromkeys(item.path[:-3] for item in selection.items if _is_params(item))
    order = selection.origin.run.get("parameters")
    known = {name: index for index, name in enumerate(order)} if isinstance(order, list | tuple) else {}
    named = selection.origin.run.get("parameter_groups")
    groups = list(named) if isinstance(named, list | tuple) else []
    found = [_optimizer(selection, prefix, known, groups) for prefix in prefixes]
    items = list(selection.items)
    for optimizer in found:
        items = [_moved(item, optimizer) for item in items]
    return dataclasses.replace(selection, items=tuple(items), optimizers=tuple(found))


def _is_params(item: Item) -> bool:
    return (
        len(item.path) >= 3
        and item.path[-3] == _GROUPS
        and item.path[-1] == _PARAMS
        and not item.is_tensor
        and isinstance(item.leaf.value, list | tuple)
    )


def _optimizer(selection: Selection, prefix: Path, known: Mapping[str, int], order: Sequence[str]) -> NumberedOptimizer:
    lists = {
        item.path[-2]: [str(name) for name in item.leaf.value]
        for item in selection.items
        if _is_params(item) and item.path[:-3] == prefix
    }
    names = sorted(lists, key=lambda name: (order.index(str(name)) if name in order else len(order), _natural(name)))
    params = [_ordered(lists[name], known) for name in names]
    numbers: dict[str, int] = {}
    for name in (name for group in params for name in group):
        numbers.setdefault(name, int(name) if name.isdigit() else len(numbers))
    is_ordered = all(name in known for name in numbers) or any(lists[name] != sorted(lists[name]) for name in names)
    return NumberedOptimizer(prefix, {name: index for index, name in enumerate(names)}, params, numbers, is_ordered)


def _ordered(names: Sequence[str], known: Mapping[str, int]) -> list[str]:
    """In the order of the model; what is in no order but that of names, as people count; else as it is."""
    if all(name in known for name in names):
        return sorted(names, key=known.__getitem__)
    return sorted(names, key=_natural) if list(names) == sorted(names) else list(names)


def _natural(name: str | int) -> list[tuple[int, str]]:
    """``layers.10`` after ``layers.9``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", str(name))]


def _moved(item: Item, optimizer: NumberedOptimizer) -> Item:
    length = len(optimizer.prefix)
    if item.path[:length] != optimizer.prefix:
        return item
    match item.path[length:]:
        case ("param_groups", group, "params") if group in optimizer.groups and optimizer.has_names:
            index = optimizer.groups[group]
            names = list(optimizer.params[index])
            leaf = SourceLeaf(name=item.leaf.name, path=item.leaf.path, dtype=None, shape=None, load=lambda: names)
            return dataclasses.replace(item, leaf=leaf, path=(*optimizer.prefix, _GROUPS, index, _NAMES))
        case ("param_groups", group, *rest) if rest and group in optimizer.groups:
            return dataclasses.replace(item, path=(*optimizer.prefix, _GROUPS, optimizer.groups[group], *rest))
        case ("state", name, *rest) if rest and str(name) in optimizer.number_of:
            return dataclasses.replace(item, path=(*optimizer.prefix, _STATE, optimizer.number_of[str(name)], *rest))
    return item
