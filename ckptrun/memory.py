"""Whether a tensor has the memory that it says it has. Must not know files or ranks."""

from torch import Tensor

from ckptrun.errors import UnsupportedLeafError

__all__ = ["require_memory"]


def require_memory(tensor: Tensor, *, name: str) -> None:
    """Refuse a plain, strided tensor whose storage was given up or made smaller, as FSDP frees parameters.

    To read what is not its own ends in other bytes, or in the end of the process.

    Raises:
        UnsupportedLeafError: Names leaf ``name`` and both sizes, in bytes.
    """
    if not tensor.numel():
        return
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = tensor.storage_offset() + sum((size - 1) * step for size, step in steps)
    needed, held = (last + 1) * tensor.element_size(), tensor.untyped_storage().nbytes()
    if held < needed:
        raise UnsupportedLeafError(
            f"Leaf '{name}' is a tensor whose memory was given up: its storage holds {held} bytes, its elements reach "
            f"to byte {needed}. Gather or allocate it again before it is saved or loaded."
        )
