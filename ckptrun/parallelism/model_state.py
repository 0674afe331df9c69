"""The model as a component of the state: every parameter, every buffer, and what modules call their extra state.

Not ``nn.Module.state_dict``: that leaves non-persistent buffers out, and they too may decide what comes next.
Must not know files.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from ckptrun.errors import StateMismatchError
from ckptrun.local_part import local_part
from ckptrun.parallelism.naming import Ties, clean_name, named_tensors

__all__ = ["has_extra_state", "load_model_state", "model_state"]

_EXTRA = "_extra_state"


def model_state(module: nn.Module, ties: Ties) -> dict[str, Any]:
    """Name -> live tensor (detached: it shares its memory with the model's), or the extra state of a module.

    FullyShardedDataParallel holds flat parts of parameters, which no name stands for; there, parameters come as DTensor
    copies, gathered with collectives: all ranks call. A tied tensor stands under each of its names, as one object.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            # A forward without a backward leaves parameters gathered.
            part.reshard()
    state: dict[str, Any] = {name: tensor.detach() for name, tensor in named_tensors(module)}
    if isinstance(module, FullyShardedDataParallel):
        parameters = {clean_name(name) for name, _ in module.named_parameters(remove_duplicate=False)}
        gathered = get_model_state_dict(module)
        state = {name: gathered[name] if name in parameters else tensor for name, tensor in state.items()}
    for names in ties:
        state.update({name: state[names[0]] for name in names})
    state.update((name, read()) for name, read, _ in _extra_states(module))
    return state


@torch.no_grad()
def load_model_state(module: nn.Module, ties: Ties, state: Mapping[str, Any]) -> None:
    """Fill ``module`` from ``state``, in place. All ranks call.

    ``state`` may be the very tensors of :func:`model_state`, filled by someone else.

    Raises:
        StateMismatchError: ``state`` names other leaves; or a leaf is of another dtype, shape or layout, or no tensor;
            or two names of a tied tensor hold different values. The module is unchanged.
    """
    live = model_state(module, ties)
    _check_names(live, state)
    _check_alike(live, state)
    _check_ties(ties, state)
    flat = isinstance(module, FullyShardedDataParallel)
    gathered = {clean_name(name) for name, _ in module.named_parameters(remove_duplicate=False)} if flat else set()
    if gathered:
        set_model_state_dict(module, {name: state[name] for name in gathered}, options=StateDictOptions(strict=False))
    for name, tensor in live.items():
        if isinstance(tensor, Tensor) and name not in gathered and not _extra(name):
            local_part(tensor).copy_(local_part(state[name]))
    for name, _, write in _extra_states(module):
        write(state[name])


def has_extra_state(module: nn.Module) -> bool:
    """Whether some part has extra state, as torch calls it."""
    return any(True for _ in _extra_states(module))


def _extra_states(module: nn.Module) -> Iterable[tuple[str, Callable[[], Any], Callable[[Any], None]]]:
    """Name, getter and setter, for each module that has extra state, under torch's own key."""
    for prefix, part in module.named_modules():
        if type(part).get_extra_state is not nn.Module.get_extra_state:
            yield clean_name(f"{prefix}.{_EXTRA}" if prefix else _EXTRA), part.get_extra_state, part.set_extra_state


def _check_names(live: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    missing, unexpected = sorted(live.keys() - state.keys()), sorted(state.keys() - live.keys())
    if missing or unexpected:
        raise StateMismatchError(
            f"The state to load is not of this model: it lacks {_some(missing)}, and the model has no place for "
            f"{_some(unexpected)}. Build the model that was saved, or name what may differ when loading.",
            leaves=[*missing, *unexpected],
        )


def _check_alike(live: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    wrong = {name: (_spell(value), _spell(state[name])) for name, value in live.items() if not _extra(name)}
    wrong = {name: (expected, got) for name, (expected, got) in wrong.items() if expected != got}
    if wrong:
        name, (expected, got) = next(iter(wrong.items()))
        raise StateMismatchError(
            f"Leaf '{name}' of the model is {expected}, but the state to load holds {got}"
            f"{f' (and {len(wrong) - 1} more leaves differ)' if len(wrong) > 1 else ''}.",
            leaves=list(wrong),
        )


def _check_ties(ties: Ties, state: Mapping[str, Any]) -> None:
    for first, *others in ties:
        for other in others:
            if state[first] is not state[other] and not _same_bits(state[first], state[other]):
                raise StateMismatchError(
                    f"'{first}' and '{other}' are one tied tensor of the model, but the state to load holds different "
                    "values for them.",
                    leaves=[first, other],
                )


def _same_bits(one: Tensor, other: Tensor) -> bool:
    left, right = (local_part(tensor).contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return torch.equal(left, right)


def _extra(name: str) -> bool:
    return name.rpartition(".")[2] == _EXTRA


def _spell(value: Any) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    layout = (
        f", sharded {value.placements} over {tuple(value.device_mesh.shape)} ranks"
        if isinstance(value, DTensor)
        else ""
    )
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}{layout}"


def _some(names: list[str]) -> str:
    return (
        ", ".join(f"'{name}'" for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        or "nothing"
    )
