"""One face for a model under every kind of parallelism. Must not know configs, optimizers or files."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from torch.nn.parallel import DistributedDataParallel

from ckptrun.errors import ConfigError
from ckptrun.parallelism.buffers import BufferSync
from ckptrun.parallelism.gradients import Gradients
from ckptrun.parallelism.mesh import TENSOR
from ckptrun.parallelism.model_state import has_extra_state, load_model_state, model_state
from ckptrun.parallelism.naming import Ties
from ckptrun.parallelism.own_code import load_by_own_code, own_state_code, state_by_own_code

__all__ = ["ParallelModel"]


class ParallelModel:
    """A model that is laid out on a mesh. All ranks call everything, in the same order.

    Within a step: for each micro-batch, forward of ``module`` and backward inside of ``accumulating(last=...)``; then
    ``sync_buffers``, ``global_norm``, ``scale_gradients``, the optimizer.

    Attributes:
        module: What is called for forward; under DDP and FullyShardedDataParallel it is their wrapper.
        named_parameters: Name in the user's model -> live parameter, which the optimizer gets. A tied parameter stands
            once, under its first name. Under FullyShardedDataParallel these are 1-dim parts, and may be empty.
        decayed: Names of parameters that have two or more dims in the user's model: no norms, no biases.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        named_parameters: Mapping[str, nn.Parameter],
        decayed: frozenset[str],
        axes: Mapping[str, frozenset[str]],
        ties: Ties,
        mesh: DeviceMesh | None,
    ) -> None:
        self.module = module
        self.named_parameters = dict(named_parameters)
        self.decayed = decayed
        self._inner: nn.Module = module.module if isinstance(module, DistributedDataParallel) else module
        self._ties = ties
        # no_sync of FullyShardedDataParallel loses the gradients of DTensors (RuntimeError: invalid python storage).
        tensor_parallel = mesh is not None and TENSOR in (mesh.mesh_dim_names or ())
        self._can_wait = not (tensor_parallel and isinstance(module, FullyShardedDataParallel))
        self._own_code = own_state_code(self._inner)
        if self._own_code and isinstance(module, FullyShardedDataParallel):
            raise ConfigError(
                f"The model has state-dict code of its own ({self._own_code[0]}), which FullyShardedDataParallel does "
                "not call. Use parallelism=fsdp, hsdp, ddp or none."
            )
        self._gradients = Gradients(self.named_parameters, axes=axes, mesh=mesh)
        self._buffers = BufferSync(self._inner, mesh)

    @property
    def inner(self) -> nn.Module:
        """The module whose parts bear the names of the user's model, once cleaned (see ``clean_name``)."""
        return self._inner

    @property
    def state_comes_and_goes(self) -> bool:
        """Whether a checkpoint may hold leaves that the fresh model has not: its own code decides what they are."""
        return bool(self._own_code) or has_extra_state(self._inner)

    @property
    def has_buffers(self) -> bool:
        """Whether forward might change something besides random streams."""
        return len(self._buffers) > 0

    @contextlib.contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Run one forward and backward of a step; gradients are reduced over ranks only in the ``last`` one.

        Under ``fsdp1_tp`` they are reduced in each: FullyShardedDataParallel cannot keep gradients of DTensors back.
        """
        with contextlib.ExitStack() as stack:
            if isinstance(self.module, FSDPModule):
                self.module.set_requires_gradient_sync(last)
                self.module.set_is_last_backward(last)
            elif (
                isinstance(self.module, DistributedDataParallel | FullyShardedDataParallel)
                and self._can_wait
                and not last
            ):
                stack.enter_context(self.module.no_sync())
            yield

    def sync_buffers(self) -> None:
        """Give buffers that forward changed the values of data-parallel rank 0, after a step's last backward."""
        self._buffers.sync()

    def global_norm(self) -> Tensor:
        """L2 norm of all gradients, each element of the model counted once: 0-dim fp64, equal bits on every rank."""
        return self._gradients.global_norm()

    def scale_gradients(self, factor: Tensor | float) -> None:
        """Multiply every gradient by ``factor`` in place, e.g. to clip."""
        self._gradients.scale(factor)

    def state_dict(self) -> dict[str, Any]:
        """Every parameter and buffer by name, live where a tensor stands for it; see ``model_state``.

        Of a model with state-dict code of its own: what that code gives.
        """
        state = model_state(self._inner, self._ties)
        return state_by_own_code(self._inner, state) if self._own_code else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Fill the model in place; strict, see ``load_model_state``, unless it has state-dict code of its own."""
        if self._own_code:
            load_by_own_code(self._inner, model_state(self._inner, self._ties), state)
        else:
            load_model_state(self._inner, self._ties, state)
