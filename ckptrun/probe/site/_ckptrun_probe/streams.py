"""Where the random streams of this process stand: a short digest of each, without a draw."""

from __future__ import annotations

import hashlib
import random
import sys
from typing import Any

__all__ = ["stream_digests"]


def stream_digests() -> dict[str, str]:
    """``python``, ``numpy``, ``torch`` and one for each device that was used."""
    _, words, gauss = random.getstate()
    # Hashes of numbers are the same in every process; that of None is not.
    found = {"python": f"{hash(words) & (1 << 64) - 1:016x}" + ("" if gauss is None else gauss.hex())}
    numpy = sys.modules.get("numpy")
    if numpy is not None and "numpy.random" in sys.modules:
        name, keys, place, has_gauss, cached = numpy.random.get_state()
        found["numpy"] = _short(keys.tobytes() + f"{name} {place} {has_gauss} {cached!r}".encode())
    torch = sys.modules.get("torch")
    if torch is not None:
        found["torch"] = _short(_raw(torch.get_rng_state()))
        # To ask whether there is a device at all would keep processes that are forked later from using it.
        if torch.cuda.is_initialized():
            device = torch.cuda.current_device()
            found[f"cuda:{device}"] = _short(_raw(torch.cuda.get_rng_state(device)))
    return found


def _raw(state: Any) -> bytes:
    try:
        return bytes(state.numpy())
    except RuntimeError:
        return bytes(state.tolist())


def _short(raw: bytes) -> str:
    return hashlib.blake2b(raw, digest_size=8).hexdigest()
