"""A tensor's elements as bytes in host memory, row-major, without a copy where that is possible.

Must not know files or ranks.
"""

import functools

import numpy as np
import torch
from torch import Tensor
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ckptrun.engine.dtypes import is_known
from ckptrun.errors import UnsupportedLeafError
from ckptrun.memory import require_memory
from ckptrun.values import kind_name

__all__ = ["TensorBytes", "detached", "dtype_name", "plain_tensor", "require_storable", "writable_bytes"]


_NUMPY_HAS = frozenset({torch.float64, torch.float32, torch.int64, torch.int32, torch.uint8, torch.bool})
_HOST_STEP_BYTES = 2**20  # stays in a core's own cache until it is hashed
_OTHER_STEP_BYTES = 8 * 2**20


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    """Return the name without ``torch.``."""
    return str(dtype).removeprefix("torch.")


def require_storable(name: str, dtype: torch.dtype, layout: torch.layout) -> None:
    """Check that tensors of this kind have plain bytes.

    Raises:
        UnsupportedLeafError: Quantized, sub-byte or sparse tensors; names leaf ``name``.
    """
    if layout is not torch.strided:
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a tensor of layout {layout}; only strided ones can be stored. Save its parts."
        )
    if not is_known(dtype_name(dtype)):
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a tensor of {dtype}, which format 1 cannot hold. Save a view of it as another dtype."
        )


def plain_tensor(tensor: Tensor, *, name: str) -> Tensor:
    """Return the tensor that has the storage.

    Raises:
        UnsupportedLeafError: A subclass of several tensors, or a tensor without data; names leaf ``name``.
    """
    tensor = detached(tensor, name=name)
    if type(tensor) is Tensor and not tensor.is_meta and not tensor.is_nested:
        return tensor
    if isinstance(tensor, AsyncCollectiveTensor):
        tensor = tensor.wait()
    if tensor.is_meta or tensor.is_nested or _is_wrapper(tensor):
        raise _without_bytes(tensor, name)
    return tensor


def detached(tensor: Tensor, *, name: str) -> Tensor:
    """Return ``tensor`` without history.

    Raises:
        UnsupportedLeafError: It is on the meta device, or a subclass that does not support that; names leaf ``name``.
    """
    if tensor.is_meta:
        raise _without_bytes(tensor, name)
    try:
        bare = tensor.detach()
    except (NotImplementedError, RuntimeError, TypeError, ValueError) as error:
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a {kind_name(tensor)}, which cannot be read as a tensor "
            f"({type(error).__name__}: {error}). Return plain tensors from state_dict(), or give "
            "the class DCP's protocol of checkpointable tensors "
            "(torch.distributed._checkpointable)."
        ) from error
    if type(bare) is Tensor and bare.layout is torch.strided and not bare.is_nested:
        require_memory(bare, name=name)
    return bare


def _is_wrapper(tensor: Tensor) -> bool:
    if is_traceable_wrapper_subclass(tensor):
        return True
    # Where operations go to Python, there may be no memory behind it.
    has_own_operations = type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
    return has_own_operations and tensor.numel() > 0 and tensor.untyped_storage().data_ptr() == 0


def _without_bytes(tensor: Tensor, name: str) -> UnsupportedLeafError:
    kind = "on the meta device, without data" if tensor.is_meta else "made of other tensors"
    return UnsupportedLeafError(
        f"Leaf '{name}' is a {type(tensor).__qualname__} {kind}, and has no bytes of its own. "
        "Return plain tensors from state_dict()."
    )


class TensorBytes:
    """The elements of a tensor on any device as bytes, row-major, copied piece by piece to where they are wanted.

    Raises:
        UnsupportedLeafError: See :func:`plain_tensor`.
    """

    def __init__(self, tensor: Tensor, *, name: str) -> None:
        self._tensor = plain_tensor(tensor, name=name)
        self._memory = writable_bytes(self._tensor)
        self.bytes = self._tensor.numel() * self._tensor.element_size()
        self.step_bytes = _HOST_STEP_BYTES if self._memory is not None else _OTHER_STEP_BYTES

    def copy(self, begin: int, target: memoryview) -> None:
        """Fill ``target`` from byte ``begin`` on; both ends are multiples of the element size."""
        if self._memory is not None:
            target[:] = self._memory[begin : begin + target.nbytes]
            return
        item = self._tensor.element_size()
        array = np.frombuffer(target, dtype=np.uint8)
        with torch.no_grad():
            _copy_elements(self._tensor, begin // item, torch.from_numpy(array).view(self._tensor.dtype))


def _copy_elements(source: Tensor, begin: int, target: Tensor) -> None:
    """Fill a flat ``target`` with the elements of ``source`` from ``begin`` on, without a copy of all of it."""
    if source.is_contiguous():
        target.copy_(source.view(-1)[begin : begin + target.numel()])
        return
    row = source[0].numel()
    index, inside = divmod(begin, row)
    done = 0
    while done < target.numel():
        left = target.numel() - done
        if inside or left < row:
            count = min(row - inside, left)
            _copy_elements(source[index], inside, target[done : done + count])
            index, inside = index + 1, 0
        else:
            count = left // row * row
            rows = source[index : index + left // row]
            target[done : done + count].view(rows.shape).copy_(rows)
            index += left // row
        done += count


def writable_bytes(tensor: Tensor) -> memoryview | None:
    """Return the memory of a tensor; None where writing there would not set its elements row by row."""
    bare = tensor.detach()
    if type(bare) is not Tensor or bare.device.type != "cpu" or not bare.is_contiguous():
        return None
    if bare.is_conj() or bare.is_neg() or not bare.numel():
        return None
    return _bytes(bare)


def _bytes(tensor: Tensor) -> memoryview:
    if tensor.dtype in _NUMPY_HAS:
        return memoryview(tensor.numpy()).cast("B")  # type: ignore[arg-type]  # arrays are buffers
    # Flat first: a 0-dim tensor has no last dim to spread its bytes along.
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
