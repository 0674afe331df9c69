"""Changes how a module's forward runs: recomputed in backward, compiled, or under autocast.

Each change replaces ``module.forward`` and nothing else, so that names, classes and hooks stay. Compiling the forward
alone also leaves the hooks of ``fully_shard`` outside of what is compiled.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

__all__ = ["autocast_forward", "compile_forward", "recompute_in_backward"]


def recompute_in_backward(module: nn.Module, *, compiled: bool) -> None:
    """Keep no activations inside of ``module``; compute them again in backward, with the same random numbers.

    Args:
        module: A block.
        compiled: Whether the forward is compiled afterwards. Then the compiler decides what is computed again, and
            changes buffers once; it refuses to trace a context of our own.
    """
    forward = module.forward
    extra: dict[str, Any] = {}
    if not compiled and next(module.buffers(), None) is not None:
        extra["context_fn"] = lambda: (contextlib.nullcontext(), _on_copies_of_buffers(module))

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=True, **extra, **kwargs)

    _replace(module, recomputed)


@contextlib.contextmanager
def _on_copies_of_buffers(module: nn.Module) -> Iterator[None]:
    """Let the second forward change copies, or BatchNorm would take every batch into its averages twice."""
    live = [(owner, name, buffer) for owner in module.modules() for name, buffer in owner._buffers.items()]
    for owner, name, buffer in live:
        owner._buffers[name] = None if buffer is None else buffer.clone()
    try:
        yield
    finally:
        for owner, name, buffer in live:
            owner._buffers[name] = buffer


def compile_forward(module: nn.Module) -> None:
    """Compile ``module``'s forward, for each shape of its inputs anew.

    With torch's default the second shape that comes along makes it compile for all shapes, so which kernels run would
    depend on the shapes seen since the start of the process, and a resumed run could compute other bits.
    """
    _replace(module, torch.compile(module.forward, dynamic=False))


def autocast_forward(module: nn.Module, *, device_type: str, dtype: torch.dtype) -> None:
    """Compute matrix products and convolutions of ``module`` in ``dtype``; parameters stay as they are."""
    forward = module.forward

    @functools.wraps(forward)
    def under_autocast(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device_type, dtype=dtype):
            return forward(*args, **kwargs)

    _replace(module, under_autocast)


def _replace(module: nn.Module, forward: Callable[..., Any]) -> None:
    module.forward = forward
