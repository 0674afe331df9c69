"""Every random stream of a rank: Python, NumPy, torch on CPU and on each CUDA device.

Ranks that see different samples draw from different streams; the ranks of one tensor-parallel group share theirs,
because they compute the same replicated activations and must drop the same elements.
"""

import array
import contextlib
import hashlib
import random
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
import xxhash

from ckptrun.errors import StateMismatchError
from ckptrun.rank_names import rank_name

__all__ = ["RNG", "preserved", "seed_streams", "stream_digests"]

_NUMPY_GENERATOR = "MT19937"


def seed_streams(*seeds: int) -> None:
    """Seed all generators of this process from ``seeds``, e.g. (run seed, data-parallel rank)."""
    key = hashlib.sha256(",".join(map(str, seeds)).encode()).digest()
    random.seed(int.from_bytes(key[:8], "little"))
    np.random.seed(np.frombuffer(key[8:24], dtype=np.uint32))
    torch.manual_seed(int.from_bytes(key[24:], "little", signed=True))


class RNG:
    """The ``rng`` component: the streams of this process, stored under its rank.

    Must be loaded last: building or loading anything else may draw.

    Args:
        rank: Global rank; the key under which the streams are stored. Never a replica of another rank's.
    """

    def __init__(self, *, rank: int) -> None:
        self._key = rank_name(rank)

    def state_dict(self) -> dict[str, Any]:
        """Copies of all streams; nothing in it changes when the streams go on."""
        return {"ranks": {self._key: _capture()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put all streams where ``state`` says.

        Raises:
            StateMismatchError: ``state`` lacks this rank, or a stream of it.
        """
        ranks = state.get("ranks", {})
        if self._key not in ranks:
            raise StateMismatchError(
                f"The checkpoint has no random streams for {self._key} (it has {sorted(ranks)}).",
                leaves=[f"rng.ranks.{self._key}"],
            )
        _restore(ranks[self._key], key=self._key)


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Leave all streams as they were, whatever happens inside."""
    before = _capture()
    try:
        yield
    finally:
        _restore(before, key="this rank")


def stream_digests() -> dict[str, str]:
    """Stream -> digest of where it stands, for all streams of this process. Quick: asked for after every step."""
    version, words, gauss = random.getstate()
    numpy: Any = np.random.get_state(legacy=False)
    position = (numpy["bit_generator"], numpy["state"]["pos"], numpy["has_gauss"], numpy["gauss"])
    digests = {
        "python": _hash(array.array("Q", words), repr((version, gauss))),
        "numpy": _hash(numpy["state"]["key"], repr(position)),
        "torch_cpu": _hash(torch.get_rng_state().numpy()),
    }
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            digests[f"torch_cuda_{device}"] = _hash(torch.cuda.get_rng_state(device).cpu().numpy())
    return digests


def _hash(words: Any, rest: str = "") -> str:
    return xxhash.xxh3_64_hexdigest(words.tobytes() + rest.encode())


def _capture() -> dict[str, Any]:
    version, words, gauss = random.getstate()
    legacy: Any = np.random.get_state(legacy=False)
    if legacy["bit_generator"] != _NUMPY_GENERATOR:
        raise StateMismatchError(
            f"NumPy's global generator is a {legacy['bit_generator']}, only {_NUMPY_GENERATOR} is supported; "
            "do not replace it with np.random.set_state or set_bit_generator.",
            leaves=["rng.numpy"],
        )
    streams: dict[str, Any] = {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "words": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
            "position": int(legacy["state"]["pos"]),
            "has_gauss": int(legacy["has_gauss"]),
            "gauss": float(legacy["gauss"]),
        },
        "torch_cpu": torch.get_rng_state().clone(),
    }
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            streams[f"torch_cuda_{device}"] = torch.cuda.get_rng_state(device).clone()
    return streams


def _restore(streams: Mapping[str, Any], *, key: str) -> None:
    here = {"python", "numpy", "torch_cpu"}
    if torch.cuda.is_available():
        here |= {f"torch_cuda_{device}" for device in range(torch.cuda.device_count())}
    if here != set(streams):
        wrong = sorted(here ^ set(streams))
        raise StateMismatchError(
            f"{key} has the random streams {sorted(here)}, but the checkpoint has {sorted(streams)}; "
            "resume on a machine with the same devices, or leave the streams out: checkpoint.load.exclude=[rng].",
            leaves=[f"rng.ranks.{key}.{name}" for name in wrong],
        )
    python, numpy = streams["python"], streams["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(
        {
            "bit_generator": _NUMPY_GENERATOR,
            "state": {"key": numpy["words"].numpy().astype(np.uint32), "pos": numpy["position"]},
            "has_gauss": numpy["has_gauss"],
            "gauss": numpy["gauss"],
        }
    )
    for name, stream in streams.items():
        if name == "torch_cpu":
            torch.set_rng_state(stream.cpu())
        elif name.startswith("torch_cuda_"):
            torch.cuda.set_rng_state(stream.cpu(), int(name.removeprefix("torch_cuda_")))
