"""What the tensors of a job are called: the names that its own modules have for them.

Modules are looked for among all objects of the process, once for each optimizer, so that no hook is on any of them:
compiled, wrapped and sharded modules run as they would.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from typing import Any

__all__ = ["COPY", "Names", "find_names"]

COPY = "copy of "
_SHELLS = ("DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule", "AveragedModel")
_WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")


class Names:
    """Parameters and buffers of the modules of a process. Holds none of them alive.

    Attributes:
        parameters: id of a parameter -> name.
    """

    def __init__(self) -> None:
        self.parameters: dict[int, str] = {}
        self.homeless: set[int] = set()
        """Those that no module has."""
        self._places: list[tuple[str, Any, str, bool]] = []

    def add(self, name: str, module: Any, attribute: str, *, is_buffer: bool) -> None:
        """Note a tensor that ``module`` has as ``attribute``."""
        self._places.append((name, weakref.ref(module), attribute, is_buffer))

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """All that are still there, as they are now: ``model.<name>`` and ``buffers.<name>``."""
        for name, reference, attribute, is_buffer in self._places:
            module = reference()
            if module is None:
                continue
            tensor = (module._buffers if is_buffer else module._parameters).get(attribute)
            if tensor is not None:
                yield f"{'buffers' if is_buffer else 'model'}.{name}", tensor


def find_names(stepped: list[Any]) -> Names:
    """Look for the modules of this process, and name what they hold.

    Names go by the order in which the optimizers were made, so that they are the same whichever is stepped first.

    Args:
        stepped: Optimizers whose parameters must have names. What no module has is named after its place among those
            of all optimizers.
    """
    names = Names()
    taken: dict[str, int] = {}
    modules, optimizers = _made()
    wanted = _order([*optimizers, *(one for one in stepped if one not in optimizers)])
    roots = sorted(_by_root(modules, wanted), key=lambda found: found[0])
    trained = {label for (place, label), _ in roots if place < len(wanted)}
    others = [label for (place, label), _ in roots if place >= len(wanted)]
    for (place, label), tensors in roots:
        is_trained = place < len(wanted)
        if not is_trained and (label not in trained or others.count(label) > 1):
            # A copy of what is trained (an average, a teacher) is told apart by its class, where it is the only one.
            continue
        for name, module, attribute, tensor, is_buffer in tensors:
            full = name if is_trained else f"{COPY}{label}.{name}"
            if taken.get(full, id(tensor)) != id(tensor):
                full = f"{label}.{name}"
            while taken.get(full, id(tensor)) != id(tensor):
                full = f"{full}'"
            if taken.setdefault(full, id(tensor)) == id(tensor) and id(tensor) not in names.parameters:
                names.parameters[id(tensor)] = full
                names.add(full, module, attribute, is_buffer=is_buffer)
    for identity, place in wanted.items():
        if identity not in names.parameters:
            names.parameters[identity] = f"parameter[{place}]"
            names.homeless.add(identity)
    return names


def _order(optimizers: list[Any]) -> dict[int, int]:
    """Id of a parameter -> its place among those of all optimizers."""
    found: dict[int, int] = {}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                found.setdefault(id(parameter), len(found))
    return found


def _made() -> tuple[list[Any], list[Any]]:
    """All modules and all optimizers that there are, in the order in which they were made."""
    from torch.nn import Module
    from torch.optim import Optimizer

    modules, optimizers = [], []
    # From the oldest generation to the youngest: that order, in every start.
    for generation in (2, 1, 0):
        for thing in gc.get_objects(generation):
            if issubclass(type(thing), Module) and "_modules" in vars(thing):
                modules.append(thing)
            elif issubclass(type(thing), Optimizer) and "param_groups" in vars(thing):
                optimizers.append(thing)
    return modules, optimizers


def _by_root(modules: list[Any], wanted: dict[int, int]) -> Iterator[tuple[tuple[int, str], list[Any]]]:
    """Modules that are part of no other one: (where it comes in the order of optimizers, class) and what it holds."""
    parts = {id(child) for module in modules for child in module._modules.values()}
    for root in modules:
        if id(root) in parts:
            continue
        tensors = list(_tensors(root))
        places = [wanted[id(tensor)] for _, _, _, tensor, _ in tensors if id(tensor) in wanted]
        if tensors:
            yield (min(places, default=len(wanted)), _class_of(root)), tensors


def _class_of(root: Any) -> str:
    inner = root
    while type(inner).__name__ in _SHELLS and inner._modules:
        inner = next(iter(inner._modules.values()))
    return type(inner).__name__


def _tensors(root: Any) -> Iterator[tuple[str, Any, str, Any, bool]]:
    """Parameters, and buffers that a state dict has, once each: (name, module, attribute, tensor, is a buffer)."""
    seen: set[int] = set()
    for path, module in root.named_modules():
        # Wrappers have names of their own for what is inside.
        prefix = _plain(f"{path}." if path else "", root)
        for attribute, tensor in module._parameters.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}{attribute}", module, attribute, tensor, False
        for attribute, tensor in module._buffers.items():
            if tensor is not None and attribute not in module._non_persistent_buffers_set and id(tensor) not in seen:
                seen.add(id(tensor))
                yield f"{prefix}{attribute}", module, attribute, tensor, True


def _plain(prefix: str, root: Any) -> str:
    for wrapper in _WRAPPERS:
        prefix = prefix.replace(wrapper, "")
    if type(root).__name__ == "DistributedDataParallel":
        prefix = prefix.removeprefix("module.")
    return prefix
