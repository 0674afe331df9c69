"""Which parameters share options. Must not know what the options mean, nor why a parameter is decayed."""

from collections.abc import Container, Iterable, Mapping
from typing import Any

from torch import nn
from torch.distributed.tensor import DTensor

__all__ = ["layout_groups", "parameter_groups"]


def parameter_groups(
    named_parameters: Mapping[str, nn.Parameter], *, decayed: Container[str], weight_decay: float, prefix: str = ""
) -> list[dict[str, Any]]:
    """Return torch parameter groups: ``decay`` for the names in ``decayed``, ``no_decay`` for the others.

    Frozen parameters are in their group too: torch skips what has no gradient, and one that is unfrozen later is there.
    torch's multi-tensor and fused kernels refuse lists that mix plain tensors and DTensors, or DTensors of several
    meshes; so there may be several torch groups of one name, which :class:`OptimizerState` stores as one.

    Args:
        named_parameters: By name; in the same order on all ranks.
        decayed: Names of those that get ``weight_decay``; the others get none.
        weight_decay: An option of torch's optimizers.
        prefix: Put before the group's name.
    """
    decay = {name: value for name, value in named_parameters.items() if name in decayed}
    rest = {name: value for name, value in named_parameters.items() if name not in decayed}
    return [
        *layout_groups(decay.values(), name=f"{prefix}decay", weight_decay=weight_decay),
        *layout_groups(rest.values(), name=f"{prefix}no_decay", weight_decay=0.0),
    ]


def layout_groups(parameters: Iterable[nn.Parameter], *, name: str, **options: Any) -> list[dict[str, Any]]:
    """Return one torch group for each mesh, all with the same name and options; none for no parameters."""
    by_mesh: dict[Any, list[nn.Parameter]] = {}
    for parameter in parameters:
        by_mesh.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
    return [{"params": together, "name": name, **options} for together in by_mesh.values()]
