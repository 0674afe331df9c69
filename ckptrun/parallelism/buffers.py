"""Keeps buffers that forward changes (BatchNorm's averages) the same on all data-parallel ranks.

Each rank's forward sees other samples, so such buffers drift apart. At every step boundary they take the values of
data-parallel rank 0, under every kind of parallelism alike: then a checkpoint has one value to save.

All buffers are sent, not only those that changed: BatchNorm's kernels write its averages without counting up the
tensor's version, so torch cannot tell. (DistributedDataParallel sends all of them too, before each forward.)
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from ckptrun.local_part import local_part
from ckptrun.parallelism.mesh import data_axes
from ckptrun.parallelism.naming import named_tensors

__all__ = ["BufferSync"]


class BufferSync:
    """The buffers of one model on one rank.

    Args:
        module: The model.
        mesh: None: one rank, nothing to do.
    """

    def __init__(self, module: nn.Module, mesh: DeviceMesh | None) -> None:
        self._module = module
        self._groups: list[dist.ProcessGroup] = []
        if mesh is not None:
            # Innermost axis first: then the last broadcast hands out the values of rank 0 on all axes.
            axes = [axis for axis in reversed(data_axes(mesh)) if mesh[axis].size() > 1]
            self._groups = [mesh.get_group(axis) for axis in axes]

    def __len__(self) -> int:
        return len(self._live())

    @torch.no_grad()
    def sync(self) -> None:
        """Give all buffers the values of data-parallel rank 0.

        All ranks call, after the last backward of a step. One broadcast per data axis; none without buffers.
        """
        buffers = self._live()
        if not buffers or not self._groups:
            return
        packed = torch.cat([buffer.contiguous().reshape(-1).view(torch.uint8) for buffer in buffers])
        for group in self._groups:
            dist.broadcast(packed, group=group, group_src=0)
        sizes = [buffer.numel() * buffer.element_size() for buffer in buffers]
        for buffer, part in zip(buffers, torch.split(packed, sizes), strict=True):
            # clone: a view into another dtype needs an aligned start.
            buffer.copy_(part.clone().view(buffer.dtype).reshape(buffer.shape))

    def _live(self) -> list[Tensor]:
        """Local buffers, each once; forward may replace them, so they are looked up each time."""
        parameters = {id(parameter) for parameter in self._module.parameters()}
        found = {id(tensor): tensor for _, tensor in named_tensors(self._module) if id(tensor) not in parameters}
        return [local_part(tensor) for tensor in found.values()]
