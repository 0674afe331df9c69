"""State-dict code of the user's model: overrides and hooks that torch's own save and load would call.

Where a model has some, its state is what that code gives and takes, because that is what the model's user relies on;
non-persistent buffers, which it does not see, are added. Must not know files.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ckptrun.parallelism.naming import clean_name
from ckptrun.targets import is_of_user

__all__ = ["load_by_own_code", "own_state_code", "state_by_own_code"]

_METHODS = ("state_dict", "load_state_dict", "_save_to_state_dict", "_load_from_state_dict")
_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")


def own_state_code(module: nn.Module) -> tuple[str, ...]:
    """Where ``module`` or its parts have state-dict code that is not torch's, in words."""
    return tuple(f"{name or 'the model'}: {what}" for name, part in module.named_modules() for what in _code_of(part))


def state_by_own_code(module: nn.Module, everything: Mapping[str, Any]) -> dict[str, Any]:
    """What ``module.state_dict()`` gives, under clean names, and from ``everything`` the non-persistent buffers."""
    hidden = {name: everything[name] for name in _non_persistent(module)}
    return {**hidden, **{clean_name(name): value for name, value in module.state_dict().items()}}


@torch.no_grad()
def load_by_own_code(module: nn.Module, everything: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Hand ``state`` to ``module.load_state_dict``, and fill the non-persistent buffers among ``everything``.

    What its code leaves out or changes is for the comparison after the load to find.
    """
    hidden = set(_non_persistent(module))
    for name in hidden & state.keys():
        everything[name].copy_(state[name])
    names = {clean_name(name): name for name in module.state_dict()}
    given = {names.get(name, name): value for name, value in state.items() if name not in hidden}
    module.load_state_dict(given, strict=False)


def _non_persistent(module: nn.Module) -> Iterator[str]:
    for prefix, part in module.named_modules():
        for name in part._non_persistent_buffers_set:
            if isinstance(part._buffers.get(name), Tensor):
                yield clean_name(f"{prefix}.{name}" if prefix else name)


def _code_of(part: nn.Module) -> Iterator[str]:
    for name in _METHODS:
        if is_of_user(part.__dict__.get(name) or getattr(type(part), name)):
            yield f"{type(part).__name__}.{name}"
    for name in _HOOKS:
        for hook in getattr(part, name).values():
            if is_of_user(hook):
                yield f"a hook in {name}"
