"""Random numbers inside of samples that depend on the sample only.

A user's dataset may draw from the global generators (augmentation). In the rank itself that would tie the samples to
the rank's own streams, in a worker to the number of workers; either way a resumed run sees other samples. So each
sample is drawn from generators seeded for it, and the streams of the process are as before afterwards.

Covers Python's, NumPy's and torch's generators of the host. Not CUDA generators, nor generators that a map-style
dataset keeps for itself.
"""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch

from ckptrun.data.order import derived_seed

__all__ = ["kept_apart", "seed_sample"]


@contextlib.contextmanager
def kept_apart() -> Iterator[None]:
    """Give the three global generators their states back at the end."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)


def seed_sample(*parts: int | str) -> None:
    """Seed the three global generators from ``parts``."""
    seed = derived_seed(*parts)
    random.seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    # Not torch.manual_seed: that would reseed the CUDA generators of the rank too.
    torch.default_generator.manual_seed(seed)
