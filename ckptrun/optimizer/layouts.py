"""How a tensor of the optimizer's state lies beside its parameter, and how to make one that lies so.

Nearly always a moment lies as its parameter does, and a step count is a plain number on the host. What lies otherwise
is written down with a word, so that it can be made anew from a checkpoint, also on another mesh.

==================  ==========================================================================================
``parameter``       shape, device and placements of the parameter
``device``          a plain tensor on the parameter's device, equal on all ranks
``host``            a plain tensor on the CPU, equal on all ranks
``shard=S(0),...``  a DTensor on the parameter's mesh: mesh axis = ``S(tensor dim)`` or ``R`` (replicated)
==================  ==========================================================================================
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor import zeros as distributed_zeros
from torch.distributed.tensor.placement_types import Placement

from ckptrun.errors import StateMismatchError, UnsupportedLeafError

__all__ = ["DEVICE", "HOST", "PARAMETER", "check_shape", "exceptional_layout", "make_zeros", "usual_layout"]

PARAMETER, DEVICE, HOST = "parameter", "device", "host"
_SHARD = re.compile(r"S\((\d+)\)")


def usual_layout(key: str, options: Mapping[str, Any]) -> str:
    """Return the layout that the state ``key`` has when nothing is written down.

    torch keeps ``step`` on the device for fused and capturable optimizers only; ``options`` are those of the group.
    """
    if key != "step":
        return PARAMETER
    return DEVICE if options.get("fused") or options.get("capturable") else HOST


def exceptional_layout(tensor: Tensor, parameter: Tensor, *, usual: str, name: str) -> str | None:
    """Return the layout of ``tensor`` when it is not the ``usual`` one, else None.

    Raises:
        UnsupportedLeafError: It cannot be written down; ``name`` is the leaf.
    """
    layout = _layout(tensor, parameter, usual=usual, name=name)
    if layout is not None:
        return None if layout == usual else layout
    raise UnsupportedLeafError(
        f"Leaf '{name}' is {_describe(tensor)}, and its parameter {_describe(parameter)}: there is no rule to make "
        "such a tensor when the checkpoint is loaded. Keep state as plain tensors or on the parameter's mesh."
    )


def make_zeros(layout: str, parameter: Tensor, *, dtype: torch.dtype, shape: Sequence[int], name: str) -> Tensor:
    """Return zeros for a leaf ``name`` that lies beside ``parameter`` as ``layout`` says.

    Raises:
        StateMismatchError: It lay as its parameter, and that has another shape now.
    """
    if layout == PARAMETER:
        check_shape(shape, parameter.shape, name=name)
        return torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
    if layout in (DEVICE, HOST) or not isinstance(parameter, DTensor):
        device = torch.device("cpu") if layout == HOST else parameter.device
        return torch.zeros(shape, dtype=dtype, device=device)
    places = dict(item.split("=") for item in layout.split(","))
    placements = [_parse(places.get(axis, "R")) for axis in _axes(parameter)]
    return distributed_zeros(*shape, dtype=dtype, device_mesh=parameter.device_mesh, placements=placements)


def check_shape(saved: Sequence[int], expected: Sequence[int], *, name: str) -> None:
    """Raise StateMismatchError unless the leaf ``name`` was saved with the ``expected`` shape."""
    if tuple(saved) != tuple(expected):
        raise StateMismatchError(
            f"Leaf '{name}' has shape {tuple(saved)} in the checkpoint, but its parameter has shape {tuple(expected)} "
            "in this run. Build the model that was saved.",
            leaves=[name],
        )


def _layout(tensor: Tensor, parameter: Tensor, *, usual: str, name: str) -> str | None:
    """The first layout that ``tensor`` has, the usual one before others; None if it has none."""
    if not isinstance(tensor, DTensor):
        words = [word for word in (usual, PARAMETER, DEVICE, HOST) if _lies_as(word, tensor, parameter)]
        return words[0] if words else None
    if not isinstance(parameter, DTensor) or tensor.device_mesh != parameter.device_mesh:
        return None
    if tensor.shape == parameter.shape and tensor.placements == parameter.placements:
        return PARAMETER
    places = zip(_axes(parameter), tensor.placements, strict=True)
    return ",".join(f"{axis}={_spell(place, name)}" for axis, place in places)


def _lies_as(word: str, tensor: Tensor, parameter: Tensor) -> bool:
    """Whether a plain ``tensor`` does."""
    match word:
        case "parameter":
            beside = tensor.shape == parameter.shape and tensor.device == parameter.device
            return beside and not isinstance(parameter, DTensor)
        case "device":
            return tensor.device == parameter.device
        case "host":
            return tensor.device == torch.device("cpu")
        case _:
            # Axes, which no plain tensor is laid out by.
            return False


def _axes(parameter: DTensor) -> tuple[str, ...]:
    mesh = parameter.device_mesh
    return mesh.mesh_dim_names or tuple(map(str, range(mesh.ndim)))


def _spell(placement: Placement, name: str) -> str:
    if type(placement) is Shard:
        return f"S({placement.dim})"
    if isinstance(placement, Replicate):
        return "R"
    raise UnsupportedLeafError(
        f"Leaf '{name}' is placed {type(placement).__name__}, unlike its parameter; keep state sharded as its "
        "parameter, or with Shard and Replicate."
    )


def _parse(text: str) -> Placement:
    match = _SHARD.fullmatch(text)
    return Shard(int(match[1])) if match else Replicate()


def _describe(tensor: Tensor) -> str:
    if isinstance(tensor, DTensor):
        return f"a DTensor of shape {tuple(tensor.shape)} placed {tensor.placements} on {_axes(tensor)}"
    return f"a plain tensor of shape {tuple(tensor.shape)} on {tensor.device}"
