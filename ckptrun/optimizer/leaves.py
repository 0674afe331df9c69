"""One leaf of the optimizer's state: the tensor that is to be filled for it. Must not know names of groups or files.

``value`` is a tensor, or what a checkpoint says of one (``dtype`` and ``shape``).
"""

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ckptrun.errors import StateMismatchError
from ckptrun.optimizer.flat_parts import FlatParts
from ckptrun.optimizer.layouts import HOST, PARAMETER, check_shape, exceptional_layout, make_zeros

__all__ = ["is_tensor_like", "make_flat_leaf", "make_leaf"]


def is_tensor_like(value: Any) -> bool:
    """Whether it is a tensor or says what one is like, rather than a plain value."""
    return hasattr(value, "dtype") and hasattr(value, "shape")


def make_leaf(value: Any, parameter: Tensor, *, live: Any, layout: str, name: str) -> Tensor:
    """Return ``live`` if it can be filled as it is, else zeros that lie as ``layout`` says.

    Raises:
        StateMismatchError: The parameter has another shape, or ``value`` is a tensor that lies otherwise.
    """
    fits = (
        isinstance(live, Tensor)
        and live.dtype == value.dtype
        and tuple(live.shape) == tuple(value.shape)
        and exceptional_layout(live, parameter, usual=layout, name=name) is None
    )
    made: Tensor = live if fits else make_zeros(layout, parameter, dtype=value.dtype, shape=value.shape, name=name)
    if isinstance(value, Tensor) and not _lie_alike(value, made):
        raise _laid_out_otherwise(name)
    return made


def make_flat_leaf(value: Any, parameter: nn.Parameter, *, flat: FlatParts, layout: str, name: str) -> Tensor:
    """As :func:`make_leaf`, for a parameter of FullyShardedDataParallel.

    A moment that is given is returned as it is: what the optimizer gets is a copy of its flat part.
    """
    whole_shape = flat.whole_shape(parameter)
    if layout != PARAMETER or not value.shape:
        place = HOST if layout == PARAMETER else layout
        return make_zeros(place, parameter, dtype=value.dtype, shape=value.shape, name=name)
    check_shape(value.shape, whole_shape, name=name)
    if not isinstance(value, Tensor):
        return flat.zeros(parameter, value.dtype)
    if not flat.lies_right(parameter, value):
        raise _laid_out_otherwise(name)
    return value


def _lie_alike(one: Tensor, other: Tensor) -> bool:
    if isinstance(one, DTensor) and isinstance(other, DTensor):
        return one.device_mesh == other.device_mesh and one.placements == other.placements
    return isinstance(one, DTensor) == isinstance(other, DTensor)


def _laid_out_otherwise(name: str) -> StateMismatchError:
    return StateMismatchError(
        f"Leaf '{name}' is laid out in another way in the state to load than in this run. Load it through a "
        "checkpoint, which lays it out anew.",
        leaves=[name],
    )
