"""The optimizer as a component of the state: by the names of parameters, complete, and made anew on any mesh.

[Note: state by name]
torch numbers parameters by their position in the groups, makes moments in the first step only, and loads by replacing
them. Stored so, moments move to other parameters when the order changes, and a fresh optimizer, which has none, takes
nothing. So: the state is stored under names, with nothing for a parameter that never had a gradient; before a load the
moments that were saved, and no others, are made as zeros of their saved dtype; they are filled in place. Whether a
parameter is frozen, or has a gradient just now, plays no part.

Must not know files, or which optimizer it is.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ckptrun.errors import InternalError, StateMismatchError, UnsupportedLeafError
from ckptrun.local_part import local_part
from ckptrun.optimizer.flat_parts import FlatParts
from ckptrun.optimizer.group_options import check_groups, named_groups, read_groups, write_groups
from ckptrun.optimizer.layouts import exceptional_layout, usual_layout
from ckptrun.optimizer.leaves import is_tensor_like, make_flat_leaf, make_leaf
from ckptrun.targets import is_of_user
from ckptrun.values import encode

__all__ = ["OptimizerState", "SavedLeaf"]

_HOOKS = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)
STATE, GROUPS, LAYOUTS = "state", "param_groups", "layouts"


class SavedLeaf(Protocol):
    """What a checkpoint says of one leaf: what of ``state.components.SavedLeaf`` an optimizer has to know.

    No import of that class: the rooms stand in one layer, and know nothing of each other.
    """

    @property
    def path(self) -> tuple[str | int, ...]:
        """Its place, below the component."""

    @property
    def dtype(self) -> torch.dtype | None:
        """None for a plain value."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the whole tensor."""

    @property
    def value(self) -> Any:
        """The plain value."""


class OptimizerState:
    """The ``optimizer`` component. All ranks call everything, in the same order.

    ``state``: parameter name -> key -> live tensor or plain value. ``param_groups``: group name -> option -> value, and
    the names of its parameters as ``params``. ``layouts``: see ``layouts.py``; empty for most optimizers.

    Build the schedule before loading: it adds an option to the groups.

    Args:
        optimizer: Any optimizer of torch's kind whose whole state is ``param_groups`` and ``state``.
        names: Name -> parameter, for every parameter that the optimizer has, each once.
        fsdp1_root: The FullyShardedDataParallel root, if there is one; then tensors in the state are copies, converted
            with collectives, instead of live ones.
    """

    def __init__(
        self, optimizer: Optimizer, names: Mapping[str, nn.Parameter], *, fsdp1_root: nn.Module | None = None
    ) -> None:
        self._optimizer = optimizer
        self._parameters = dict(names)
        self._names = {id(parameter): name for name, parameter in self._parameters.items()}
        self._flat = None if fsdp1_root is None else FlatParts(fsdp1_root)

    def state_dict(self) -> dict[str, Any]:
        """Return the state; see the class.

        Raises:
            UnsupportedLeafError: The optimizer keeps what cannot be stored by name; names the leaf.
        """
        self._check_complete()
        state = self._read_state()
        return {STATE: state, GROUPS: read_groups(self._optimizer, self._name_of), LAYOUTS: self._layouts(state)}

    def is_of(self, optimizer: Optimizer) -> bool:
        """Whether it is the state of this very object."""
        return self._optimizer is optimizer

    def _name_of(self, parameter: Any) -> str:
        if id(parameter) not in self._names:
            raise InternalError("The optimizer has a parameter that OptimizerState was not given a name for.")
        return self._names[id(parameter)]

    def _check_complete(self) -> None:
        told = self._optimizer.state_dict()
        extra = sorted(map(str, told.keys() - {STATE, GROUPS}))
        # What code of its own adds: it would be read from live state, and not be there.
        for live, group in zip(self._optimizer.param_groups, told.get(GROUPS, ()), strict=False):
            extra += sorted(f"{GROUPS}.{option}" for option in group.keys() - live.keys() - {"param_names"})
        stray = [str(key) for key in self._optimizer.state if id(key) not in self._names]
        if extra or stray:
            raise UnsupportedLeafError(
                f"{type(self._optimizer).__name__} keeps state that is neither a parameter's nor an option of its "
                f"groups: {(extra + stray)[:5]}. Keep it in state[parameter] or as an option of a group."
            )

    def _read_state(self) -> dict[str, dict[str, Any]]:
        state = self._optimizer.state
        flat = {name: value for name, value in self._parameters.items() if self._is_flat(value)}
        gathered = self._flat.gather(flat, state) if self._flat is not None else {}
        found = {
            name: gathered[name] if name in gathered else _live(state[parameter])
            for name, parameter in self._parameters.items()
            if name in gathered or (name not in flat and state.get(parameter))
        }
        for name, values in found.items():
            for key, value in values.items():
                _check_storable(value, f"optimizer.{STATE}.{name}.{key}")
        return found

    def _is_flat(self, parameter: nn.Parameter) -> bool:
        return self._flat is not None and self._flat.manages(parameter)

    def _layouts(self, state: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, str]]:
        options = self._options_by_parameter()
        found: dict[str, dict[str, str]] = {}
        for name, values in state.items():
            if self._is_flat(self._parameters[name]):
                continue
            for key, value in values.items():
                if isinstance(value, Tensor):
                    layout = exceptional_layout(
                        value,
                        self._parameters[name],
                        usual=usual_layout(key, options[name]),
                        name=f"optimizer.{STATE}.{name}.{key}",
                    )
                    if layout is not None:
                        found.setdefault(name, {})[key] = layout
        return found

    def _options_by_parameter(self) -> dict[str, Mapping[str, Any]]:
        groups = named_groups(self._optimizer)
        return {self._name_of(parameter): group for _, group in groups for parameter in group["params"]}

    def template(self, saved: Sequence[SavedLeaf]) -> dict[str, Any]:
        """Make the state that was saved, as zeros, and return it to be filled in place: exactly the ``saved`` leaves.

        The optimizer's old state is gone, but for tensors that fit, which stay.

        Raises:
            StateMismatchError: The checkpoint is of other parameters, groups, options or shapes; names the leaves. The
                optimizer is unchanged.
        """
        nested = _nest(saved)
        self._check(nested)
        made = self._make_state(nested)
        live = read_groups(self._optimizer, self._name_of)
        groups = {
            name: {
                key: live[name][key] if isinstance(live[name][key], Tensor) else value for key, value in group.items()
            }
            for name, group in nested[GROUPS].items()
        }
        return {**nested, STATE: made, GROUPS: groups}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take ``state`` over; tensors are filled in place and never shared with it.

        ``state`` may be what :meth:`template` returned.

        Raises:
            StateMismatchError: As for :meth:`template`; or a tensor is laid out in another way than in this run.
        """
        self._check(state)
        made = self._make_state(state)
        for name, values in state[STATE].items():
            for key, value in values.items():
                if isinstance(value, Tensor) and made[name][key] is not value:
                    local_part(made[name][key]).copy_(local_part(value))
        self._scatter(made)
        write_groups(self._optimizer, state[GROUPS])
        if _has_own_code(self._optimizer):
            # What it makes of a state is what its user gets; the comparison after the load sees it.
            self._optimizer.load_state_dict(copy.deepcopy(self._optimizer.state_dict()))

    def _check(self, state: Mapping[str, Any]) -> None:
        wrong = sorted({STATE, GROUPS, LAYOUTS} ^ state.keys())
        if not wrong:
            check_groups(read_groups(self._optimizer, self._name_of), state[GROUPS])
            known = {name for group in state[GROUPS].values() for name in group["params"]}
            wrong = [f"{STATE}.{name}" for name in sorted(state[STATE].keys() - known)]
        if wrong:
            raise StateMismatchError(
                f"The optimizer state in the checkpoint does not fit: {wrong[:5]} is missing, or unknown here. Use the "
                "model and the optimizer it was saved with, or start the optimizer anew: "
                "checkpoint.load.exclude=[optimizer].",
                leaves=[f"optimizer.{name}" for name in wrong],
            )

    def _make_state(self, nested: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Give the optimizer exactly the state in ``nested``: tensors of the right kind, plain values as they are.

        Of flat parts nothing is given to it yet.
        """
        options = {name: group for group in nested[GROUPS].values() for name in group["params"]}
        made: dict[str, dict[str, Any]] = {}
        for name, values in nested[STATE].items():
            layouts = nested[LAYOUTS].get(name, {})
            made[name] = {
                key: self._make_leaf(name, key, value, layouts.get(key, usual_layout(key, options[name])))
                for key, value in values.items()
            }
        state = self._optimizer.state
        for name, parameter in self._parameters.items():
            if name not in made:
                state.pop(parameter, None)
            elif not self._is_flat(parameter):
                state[parameter] = dict(made[name])
        return made

    def _make_leaf(self, name: str, key: str, value: Any, layout: str) -> Any:
        if not is_tensor_like(value):
            return copy.deepcopy(value)
        parameter, place = self._parameters[name], f"optimizer.{STATE}.{name}.{key}"
        if self._flat is not None and self._flat.manages(parameter):
            return make_flat_leaf(value, parameter, flat=self._flat, layout=layout, name=place)
        live = self._optimizer.state.get(parameter, {}).get(key)
        return make_leaf(value, parameter, live=live, layout=layout, name=place)

    @torch.no_grad()
    def _scatter(self, made: Mapping[str, Mapping[str, Any]]) -> None:
        """Give the optimizer this rank's parts of what was made for flat parameters."""
        if self._flat is None:
            return
        for name, parameter in self._parameters.items():
            if name in made and self._flat.manages(parameter):
                own = {
                    key: self._flat.scatter(parameter, value) if isinstance(value, DTensor) else value
                    for key, value in made[name].items()
                }
                if self._flat.holds_part_of(parameter):
                    self._optimizer.state[parameter] = own


def _has_own_code(optimizer: Optimizer) -> bool:
    """Whether state-dict code of the user's would be called by torch's own save and load."""
    hooks = [hook for place in _HOOKS for hook in getattr(optimizer, place, {}).values()]
    return any(map(is_of_user, [type(optimizer).state_dict, type(optimizer).load_state_dict, *hooks]))


def _nest(saved: Sequence[SavedLeaf]) -> dict[str, Any]:
    """Nested dicts of plain values and, for tensors, of the leaves themselves."""
    nested: dict[str, Any] = {}
    for leaf in saved:
        place = nested
        for element in leaf.path[:-1]:
            place = place.setdefault(str(element), {})
        place[str(leaf.path[-1])] = leaf.value if leaf.dtype is None else leaf
    return nested


def _live(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value if isinstance(value, Tensor) else copy.deepcopy(value) for key, value in values.items()}


def _check_storable(value: Any, name: str) -> None:
    if isinstance(value, Tensor):
        return
    if isinstance(value, Mapping) or (isinstance(value, list | tuple) and any(isinstance(v, Tensor) for v in value)):
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a {type(value).__name__} of values; keep a tensor or a plain value under each key."
        )
    encode(value, name=name)
