"""What training has done to a rank's weights and moments: a fingerprint of each, for the ledger.

Taken from the tensors that the optimizer updates, and from what it keeps of them, never through a ``state_dict()``: so
it tells whether there was anything new to save, whatever the saver believes. A gradient norm and a learning rate do not
tell: optimizers skip steps, hold, round away.

Each rank's own part only, no collective: two fingerprints of one start compare, those of two layouts do not.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import xxhash
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from ckptrun.digest import digest_leaves

__all__ = ["MOMENTS", "WEIGHTS", "fingerprints"]

WEIGHTS, MOMENTS = "weights", "moments"


def fingerprints(parameters: Iterable[Tensor], optimizer: Optimizer) -> dict[str, str | None]:
    """Return ``weights`` and ``moments`` -> hex digits; None for what is of a kind whose bits nobody can read.

    Args:
        parameters: All of the model, in an order that does not change.
        optimizer: What updates them.
    """
    return {WEIGHTS: _fingerprint(parameters), MOMENTS: _fingerprint(_moments(optimizer))}


def _moments(optimizer: Optimizer) -> Iterator[Tensor]:
    """The tensors that ``optimizer`` keeps, in the order of its parameters and then of their names."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            yield from _tensors_in(state if isinstance(state, Mapping) else {})


def _tensors_in(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            yield from _tensors_in(value[key])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors_in(item)


@torch.no_grad()
def _fingerprint(tensors: Iterable[Tensor]) -> str | None:
    hasher = xxhash.xxh3_128()
    elsewhere: dict[str, Tensor] = {}
    for number, tensor in enumerate(tensors):
        local = _plain(tensor)
        if local is None:
            return None
        hasher.update(f"{number} {local.dtype} {tuple(local.shape)}".encode())
        if local.device.type == "cpu":
            hasher.update(local.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        else:
            # Summed up on the device: the bytes stay there.
            elsewhere[f"{number:09d}"] = local
    for name, digest in sorted(digest_leaves(elsewhere).items()):
        hasher.update(f"{name} {digest}".encode())
    return hasher.hexdigest()


def _plain(tensor: Tensor) -> Tensor | None:
    """This rank's part as an ordinary dense tensor; None where it is of another kind."""
    local = tensor.detach()
    if isinstance(local, DTensor):
        local = local.to_local().detach()
    if type(local) is not Tensor or local.layout is not torch.strided or local.is_meta:
        return None
    return local.resolve_conj().resolve_neg()
