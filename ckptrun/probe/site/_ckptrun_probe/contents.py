"""What is in an object that a job saves: its tensors, and whether a job can go on from it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

__all__ = ["may_be_resumed", "tensors_in"]

_DEEPEST = 6
_MOST_IN_A_LIST = 10_000
# Bytes of a random stream of torch on a CPU and on a device; words of one of NumPy.
_STREAMS = {("uint8", 5056), ("uint8", 16), ("uint32", 624)}


def tensors_in(value: Any) -> Iterator[tuple[str, Any]]:
    """All tensors and arrays in it, with where they are: keys and places, with dots between them.

    But for random streams: where they stand is no result of a step.
    """
    for name, tensor in _tensors(value, "", 0):
        if (str(tensor.dtype).removeprefix("torch."), tensor.numel()) not in _STREAMS:
            yield name, tensor


def may_be_resumed(value: Any, how: str, tensors: Sequence[Any]) -> bool:
    """Whether it may be more than weights alone (a best model, an export), which are nothing to go on from."""
    import torch

    if how.startswith("safetensors"):
        return False
    arrays = (torch.Tensor, sys.modules["numpy"].ndarray) if "numpy" in sys.modules else (torch.Tensor,)
    is_flat = isinstance(value, dict) and all(isinstance(one, arrays) for one in value.values())
    return how.startswith(("dcp", "torch_checkpointing")) or not (is_flat or (how.startswith("pickle") and not tensors))


def _tensors(value: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
        return
    if type(value).__name__ == "ndarray":
        yield from ((name, tensor) for tensor in _of_array(value))
        return
    for key, part in _parts(value) if depth <= _DEEPEST else ():
        yield from _tensors(part, f"{name}.{key}" if name else str(key), depth + 1)


def _parts(value: Any) -> Iterable[tuple[Any, Any]]:
    import torch

    if isinstance(value, dict):
        return value.items()
    if isinstance(value, (list, tuple)):
        return enumerate(value[:_MOST_IN_A_LIST])
    if isinstance(value, torch.nn.Module):
        # A whole one; its state_dict() may be a matter of all ranks.
        return [*value.named_parameters(), *value.named_buffers()]
    if isinstance(value, torch.optim.Optimizer):
        return enumerate(value.state.values())
    return vars(value).items() if dataclasses.is_dataclass(value) and hasattr(value, "__dict__") else ()


def _of_array(array: Any) -> list[Any]:
    """An array of numbers as a tensor; none of others."""
    import torch

    try:
        return [torch.from_numpy(array if array.flags.writeable else array.copy())]
    except (TypeError, ValueError):
        return []
