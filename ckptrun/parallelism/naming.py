"""Names of modules, parameters and buffers, as the user's model spells them: before, during and after wrapping.

Must not know why a module is looked for.
"""

from collections.abc import Iterator
from fnmatch import fnmatchcase

from torch import Tensor, nn

from ckptrun.errors import ConfigError

__all__ = ["Ties", "clean_name", "find_ties", "matching_modules", "named_tensors"]

_WRAPPERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
_NAMES_SHOWN = 8

Ties = tuple[tuple[str, ...], ...]
"""Groups of names that stand for one and the same tensor; in each group the first name is the one that counts."""


def clean_name(name: str) -> str:
    """``name`` without what FullyShardedDataParallel, checkpoint wrappers and ``torch.compile`` put in between.

    The ``module.`` of DistributedDataParallel is not removed, because a model may have a ``module`` of its own: names
    are read inside of that wrapper.
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def named_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Clean name and tensor of every parameter and buffer, non-persistent ones too, tied ones under each name."""
    for prefix, module in model.named_modules(remove_duplicate=False):
        for own in (module._parameters, module._buffers):
            for name, tensor in own.items():
                if tensor is not None:
                    yield clean_name(f"{prefix}.{name}" if prefix else name), tensor


def find_ties(model: nn.Module) -> Ties:
    """The tensors of ``model`` that have several names."""
    names: dict[int, list[str]] = {}
    for name, tensor in named_tensors(model):
        names.setdefault(id(tensor), []).append(name)
    return tuple(tuple(group) for group in names.values() if len(group) > 1)


def matching_modules(model: nn.Module, pattern: str, *, key: str) -> list[tuple[str, nn.Module]]:
    """Modules whose name has as many parts as ``pattern`` and matches it part by part, in the model's order.

    Raises:
        ConfigError: No module matches; names ``key``, the pattern, and some modules.
    """
    modules = [(name, module) for name, module in model.named_modules() if name]
    found = [(name, module) for name, module in modules if _matches(name, pattern)]
    if not found:
        shown = ", ".join(name for name, _ in modules[:_NAMES_SHOWN]) or "none"
        more = ", ..." if len(modules) > _NAMES_SHOWN else ""
        raise ConfigError(f"{key}: no module matches the pattern '{pattern}'. Modules of the model: {shown}{more}")
    return found


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
