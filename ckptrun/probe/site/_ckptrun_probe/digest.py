"""A fingerprint of the bits that this process holds of a tensor, at memory speed; 16 hex digits.

The bytes, in row-major order, are read as 64-bit words. A word ``x`` becomes ``x xor (x >> 47)``, so that its topmost
bits (the signs of numbers) reach the lower ones, and each 32768 of them are added up, modulo 2^64, with odd weights
that their places have. These sums, dtype and shape are hashed. One word that changes always changes it. Other changes
are missed with a chance of about 2^-60, or up to 2^-32 where nothing changes but the signs of two numbers. It depends
on how a tensor is sharded: two runs on the same mesh are compared by it.

On a device the sums are made there, and nothing but they come to the host.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import Any

__all__ = ["digest_of", "digests_of"]

_WORDS = 32768
_SHIFT = 47
# What is left of a word that is shifted, without the copies of its sign.
_LOW = (1 << 64 - _SHIFT) - 1
_WEIGHTS: dict[str, Any] = {}


def digests_of(tensors: Sequence[Any]) -> str:
    """The digests of all of them, one after the other. Waits for a device once."""
    import torch

    parts = [_parts(tensor) for tensor in tensors]
    waiting = [part[1] for part in parts if isinstance(part[1], torch.Tensor)]
    sizes = [tensor.numel() for tensor in waiting]
    fetched = iter(())
    if waiting:
        devices = {tensor.device for tensor in waiting}
        on_host = [tensor.cpu() for tensor in waiting] if len(devices) > 1 else torch.cat(waiting).cpu().split(sizes)
        fetched = iter(on_host)
    found = []
    for head, sums in parts:
        raw = sums if isinstance(sums, bytes) else _bytes(next(fetched))
        found.append(hashlib.blake2b(head + raw, digest_size=8).hexdigest())
    return "".join(found)


def digest_of(tensor: Any) -> str:
    """That of one."""
    return digests_of([tensor])


def _bytes(sums: Any) -> bytes:
    return b"".join((number & (1 << 64) - 1).to_bytes(8, "little") for number in sums.tolist())


def _parts(tensor: Any) -> tuple[bytes, Any]:
    """Dtype and shape; and the sums, or, on another device, the tensor that is going to hold them."""
    local = _own(tensor)
    head = f"{local.dtype} {tuple(local.shape)} ".encode()
    if local.device.type == "meta" or local.numel() == 0:
        return head, b""
    words, rest = _words(local)
    if words.device.type != "cpu":
        return head, _device_sums(words, rest)
    array = _array(words)
    if array is None:
        return head, _bytes(_device_sums(words, rest))
    import numpy

    weights = _weights(None)
    sums = []
    for begin in range(0, len(array), _WORDS):
        piece = array[begin : begin + _WORDS]
        mixed = piece >> numpy.uint64(_SHIFT)
        numpy.bitwise_xor(mixed, piece, out=mixed)
        sums.append(int(numpy.dot(mixed, weights[: len(mixed)])))
    return head, b"".join(number.to_bytes(8, "little") for number in [*sums, *rest.tolist()])


def _own(tensor: Any) -> Any:
    """What this process holds, plain, contiguous, outside of autograd."""
    import torch

    local = tensor.detach()
    if hasattr(local, "_local_tensor"):
        local = local._local_tensor
    if type(local) not in (torch.Tensor, torch.nn.Parameter) and hasattr(local, "__tensor_flatten__"):
        names, _ = local.__tensor_flatten__()
        local = torch.cat([_own(getattr(local, name)).reshape(-1).view(torch.uint8) for name in names])
    if local.layout is not torch.strided:
        local = local.to_dense()
    return local.resolve_conj().resolve_neg().contiguous()


def _words(local: Any) -> tuple[Any, Any]:
    """The bytes as words of 64 bits, and those that are left over."""
    import torch

    raw = local.reshape(-1).view(torch.uint8) if local.dtype is not torch.bool else local.reshape(-1).to(torch.uint8)
    if raw.storage_offset() % 8:
        raw = raw.clone()
    whole = raw.numel() // 8 * 8
    return raw[:whole].view(torch.int64), raw[whole:]


def _array(words: Any) -> Any:
    """The words as an array of NumPy, which shares their memory; None without NumPy."""
    numpy = _numpy()
    try:
        return None if numpy is None else words.numpy().view(numpy.uint64)
    except RuntimeError:
        # It is there, and torch cannot use it.
        return None


@functools.lru_cache(maxsize=1)
def _numpy() -> Any:
    """The module, or None; looking for what is not there goes through all folders each time."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def _weights(device: Any) -> Any:
    """The odd weights of the places of a piece: for NumPy with None, else on a device."""
    key = str(device)
    if key not in _WEIGHTS:
        numbers, seed, mask = [], 0, (1 << 64) - 1
        for _ in range(_WORDS):
            # splitmix64
            seed = (seed + 0x9E3779B97F4A7C15) & mask
            mixed = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & mask
            mixed = ((mixed ^ mixed >> 27) * 0x94D049BB133111EB) & mask
            numbers.append((mixed ^ mixed >> 31) | 1)
        if device is None:
            import numpy

            _WEIGHTS[key] = numpy.array(numbers, dtype=numpy.uint64)
        else:
            import torch

            signed = [number - (1 << 64) if number >> 63 else number for number in numbers]
            _WEIGHTS[key] = torch.tensor(signed, dtype=torch.int64, device=device)
    return _WEIGHTS[key]


def _device_sums(words: Any, rest: Any) -> Any:
    """The same sums with torch; shape (pieces + bytes left over,) int64."""
    import torch

    weights = _weights(words.device)
    sums = []
    whole = len(words) // _WORDS * _WORDS
    # At most 64 MiB at a time: that much memory is needed beside the tensor.
    most = _WORDS * 256
    for begin in range(0, whole, most):
        piece = words[begin : min(begin + most, whole)].view(-1, _WORDS)
        sums.append(((piece >> _SHIFT & _LOW ^ piece) * weights).sum(1))
    if whole < len(words):
        piece = words[whole:]
        sums.append(((piece >> _SHIFT & _LOW ^ piece) * weights[: len(piece)]).sum().reshape(1))
    sums.append(rest.to(torch.int64))
    return torch.cat(sums)
