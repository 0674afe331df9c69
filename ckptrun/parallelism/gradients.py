"""The global norm of gradients that are spread over a mesh, and their scaling. Must not know models or optimizers."""

from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from ckptrun.local_part import local_part

__all__ = ["Gradients", "sharded_axes"]


def sharded_axes(tensor: Tensor) -> frozenset[str]:
    """Names of the mesh axes over which the elements of ``tensor`` are spread; a plain tensor has none."""
    if not isinstance(tensor, DTensor):
        return frozenset()
    names = tensor.device_mesh.mesh_dim_names or ()
    return frozenset(
        axis for axis, place in zip(names, tensor.placements, strict=True) if not isinstance(place, Replicate)
    )


class Gradients:
    """The gradients of some parameters on one rank, as part of the whole.

    Args:
        parameters: By name; in the same order on all ranks.
        axes: For each name the mesh axes over which the parameter's elements are spread. On the other axes ranks hold
            the same elements, which count once.
        mesh: Whose axes they are; None: one rank.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], *, axes: Mapping[str, frozenset[str]], mesh: DeviceMesh | None
    ) -> None:
        self._parameters = parameters
        self._axes = axes
        self._mesh = mesh
        # From the layout, not from the gradients at hand: all ranks must take part in the same collectives.
        self._kinds = sorted({frozenset(axes[name]) for name in parameters} | {frozenset()}, key=sorted)

    @torch.no_grad()
    def global_norm(self) -> Tensor:
        """L2 norm over all elements of all gradients, each counted once: 0-dim fp64, the same bits on every rank.

        All ranks call. One reduction of a few numbers per sharded mesh axis. Parameters without a gradient are skipped.
        """
        squares = torch.stack([self._local_squares(kind) for kind in self._kinds])
        for axis in () if self._mesh is None else self._mesh.mesh_dim_names or ():
            spread = [index for index, kind in enumerate(self._kinds) if axis in kind]
            if spread and self._mesh is not None:
                part = squares[spread]
                dist.all_reduce(part, group=self._mesh.get_group(axis))
                squares[spread] = part
        return squares.sum().sqrt()

    @torch.no_grad()
    def scale(self, factor: Tensor | float) -> None:
        """Multiply every gradient in place."""
        for local in self._local([name for name in self._parameters]):
            (local._values() if local.is_sparse else local).mul_(factor)

    def _local_squares(self, kind: frozenset[str]) -> Tensor:
        local = self._local([name for name in self._parameters if self._axes[name] == kind])
        if not local:
            return torch.zeros((), dtype=torch.float64, device=self._device())
        # A sparse gradient may hold several entries for one row, which count as their sum.
        dense = [gradient.coalesce().values() if gradient.is_sparse else gradient for gradient in local]
        parts = [torch.view_as_real(gradient) if gradient.is_complex() else gradient for gradient in dense]
        norms = [torch.linalg.vector_norm(part, dtype=torch.float64) for part in parts]
        return torch.stack(norms).square().sum()

    def _local(self, names: Sequence[str]) -> list[Tensor]:
        gradients = (self._parameters[name].grad for name in names)
        return [local_part(grad) for grad in gradients if grad is not None]

    def _device(self) -> torch.device:
        first = next(iter(self._parameters.values()), None)
        return torch.device("cpu") if first is None else first.device
