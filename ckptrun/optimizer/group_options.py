"""The options of parameter groups, by the groups' names. Must not know what the options mean.

torch groups of one name are one group here: a mesh may split them (see ``parameter_groups``), and they share options.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ckptrun.embedded import embed, holds_tensor, restore
from ckptrun.errors import StateMismatchError, UnsupportedLeafError

__all__ = ["check_groups", "named_groups", "read_groups", "write_groups"]

_PARAMS = "params"
# A group's name is its key; the names of its parameters stand under "params".
_NO_OPTIONS = (_PARAMS, "name", "param_names")


def named_groups(optimizer: Optimizer) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the torch group itself, in torch's order; names may repeat."""
    for index, group in enumerate(optimizer.param_groups):
        yield str(group.get("name", f"group_{index}")), group


def read_groups(optimizer: Optimizer, name_of: Callable[[Any], str]) -> dict[str, dict[str, Any]]:
    """Return group name -> its options, and its parameters' names, sorted, as ``params``.

    Tensors are live, but for those in a list or tuple, which is one value.

    Raises:
        UnsupportedLeafError: Groups of one name have different options, or an option is a dict.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, group in named_groups(optimizer):
        params = sorted(map(name_of, group[_PARAMS]))
        options = {key: _read(value, f"{name}.{key}") for key, value in group.items() if key not in _NO_OPTIONS}
        if name not in found:
            found[name] = {**options, _PARAMS: params}
            continue
        first = found[name]
        for key in first.keys() | options.keys():
            if key != _PARAMS and not _same(first.get(key), options.get(key)):
                raise UnsupportedLeafError(
                    f"Leaf 'optimizer.param_groups.{name}.{key}' is {first.get(key)!r} in one torch group of that name "
                    f"and {options.get(key)!r} in another. Change groups of one name together."
                )
        first[_PARAMS] = sorted([*first[_PARAMS], *params])
    return found


def _read(value: Any, place: str) -> Any:
    if isinstance(value, Mapping):
        raise UnsupportedLeafError(f"Leaf 'optimizer.param_groups.{place}' is a dict; use several options instead.")
    if isinstance(value, Tensor):
        return value
    # torch's Adam has a tuple of tensors, if it is given one: small numbers, one value.
    return embed(value, name=f"optimizer.param_groups.{place}") if holds_tensor(value) else copy.deepcopy(value)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    return type(one) is type(other) and bool(one == other)


def check_groups(live: Mapping[str, Mapping[str, Any]], saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise StateMismatchError unless both have the same groups, with the same parameters and the same options."""
    _refuse("groups", live.keys() ^ saved.keys(), live.keys(), place="")
    for name, group in live.items():
        place = f".{name}"
        _refuse("parameters", set(group[_PARAMS]) ^ set(saved[name][_PARAMS]), group[_PARAMS], place=place)
        _refuse("options", group.keys() ^ saved[name].keys(), group.keys(), place=place)
        _refuse(
            "options that are tensors",
            {key for key, value in group.items() if not _same_kind(value, saved[name][key])},
            {key for key, value in group.items() if isinstance(value, Tensor)},
            place=place,
        )


def _same_kind(live: Any, saved: Any) -> bool:
    """``saved`` may be the value, or what a checkpoint says of it: with ``dtype`` and ``shape``."""
    dtype, shape = getattr(saved, "dtype", None), tuple(getattr(saved, "shape", ()))
    if isinstance(live, Tensor):
        return live.dtype == dtype and tuple(live.shape) == shape
    return dtype is None


def _refuse(what: str, differing: set[str], here: Any, *, place: str) -> None:
    if differing:
        only_here, only_there = sorted(differing & set(here)), sorted(differing - set(here))
        raise StateMismatchError(
            f"optimizer.param_groups{place}: {what} differ. Only in this run: {only_here[:5]}; only in the checkpoint: "
            f"{only_there[:5]}. Use the model and the optimizer it was saved with, or start the optimizer anew: "
            "checkpoint.load.exclude=[optimizer].",
            leaves=[f"optimizer.param_groups{place}.{name}" for name in sorted(differing)],
        )


def write_groups(optimizer: Optimizer, saved: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the options in place: tensors are filled, plain values replaced."""
    for name, group in named_groups(optimizer):
        for key, value in saved[name].items():
            if key == _PARAMS:
                continue
            if isinstance(value, Tensor):
                if group[key] is not value:
                    group[key].copy_(value)
            else:
                whole = restore(value, name=f"optimizer.param_groups.{name}.{key}", like=group[key])
                group[key] = copy.deepcopy(value) if whole is value else whole
