"""The state of an optimizer as ``torch.optim.Optimizer.load_state_dict`` takes it, made from one that goes by names.

A checkpoint has ``state.<parameter>.<key>``, ``param_groups.<group>.<option>`` and the names of a group's parameters as
``params``: names are the same on every mesh. torch wants numbers: ``state[number][key]``, a list of groups, and in each
the numbers of its parameters, counted through all groups. The numbers follow the order of the parameters in the model,
which a run notes in the manifest; the names stand beside them, as ``param_names``. Must not know which optimizer it is.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from ckptrun.formats.common.interface import SourceLeaf
from ckptrun.formats.common.numbered_optimizer import GROUPS, PARAM_NAMES, PARAMS, STATE, NumberedOptimizer, Path
from ckptrun.formats.common.selection import Item, Selection

__all__ = ["number_optimizers"]


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
        and item.path[-3] == GROUPS
        and item.path[-1] == PARAMS
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
            return dataclasses.replace(item, leaf=leaf, path=(*optimizer.prefix, GROUPS, index, PARAM_NAMES))
        case ("param_groups", group, *rest) if rest and group in optimizer.groups:
            return dataclasses.replace(item, path=(*optimizer.prefix, GROUPS, optimizer.groups[group], *rest))
        case ("state", name, *rest) if rest and str(name) in optimizer.number_of:
            return dataclasses.replace(item, path=(*optimizer.prefix, STATE, optimizer.number_of[str(name)], *rest))
    return item
