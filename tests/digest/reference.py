"""The digest written anew from the definition in ``ckptrun/digest/__init__.py``, in plain Python integers.

Shares no line with the package and takes raw bytes, so that it also checks how the package reads a tensor's memory.
"""

import hashlib
import math
import struct

import torch


def u(t, n):
    z = (t * 2**40 + n + 1) * 0x9E3779B97F4A7C15 % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def odd(t, n):
    return u(t, n) | 1


def even(t, n):
    return u(t, n) - u(t, n) % 2


def g(c, place):
    weight = (u(c, place) >> 49) - 2**14
    return weight | 1 if c == 0 else weight


def place(s, at):
    return odd(4 + s, 0) * g(0, at) + sum(even(4 + s, c) * g(c, at) for c in (1, 2, 3))


def line(s, h):
    return odd(6 + s, h % 4096) * odd(8 + s, h // 4096)


def row(s, i):
    return odd(10 + s, i % 4096) * odd(12 + s, i // 4096)


PLACES = [[place(s, at) for at in range(256)] for s in (0, 1)]


def reference_digest(raw: bytes, *, dtype: str, element_bytes: int, shape: tuple[int, ...]) -> str:
    dims, row_bytes = len(shape), element_bytes
    while dims and row_bytes < 1024:
        dims -= 1
        row_bytes *= shape[dims]
    sums = [0, 0]
    for i in range(math.prod(shape[:dims]) if raw else 0):
        content = raw[i * row_bytes : (i + 1) * row_bytes]
        content += bytes(-len(content) % 4)
        for k, word in enumerate(struct.unpack(f"<{len(content) // 4}i", content)):
            for s in (0, 1) if word else ():
                sums[s] += word * PLACES[s][k % 256] * line(s, k // 256) * row(s, i)
    sizes = ",".join(str(size) for size in shape)
    text = f"ckptrun digest 1\n{dtype}\n{sizes}\n{sums[0] % 2**64:016x}{sums[1] % 2**64:016x}"
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).hexdigest()


def reference_of(tensor: torch.Tensor) -> str:
    dense = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    raw = dense.view(torch.uint8).numpy().tobytes() if dense.numel() else b""
    name = str(tensor.dtype).removeprefix("torch.")
    return reference_digest(raw, dtype=name, element_bytes=tensor.element_size(), shape=tuple(tensor.shape))
