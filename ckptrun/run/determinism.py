"""Makes torch compute the same bits every time, or say by name what cannot."""

import os

import torch

from ckptrun.config.train import TrainConfig

__all__ = ["make_deterministic"]


def make_deterministic(config: TrainConfig) -> None:
    """Fix thread counts; with ``train.deterministic`` (the default) allow deterministic algorithms only.

    An operation that has none then raises a RuntimeError of torch that names it. Call before CUDA is first used.
    """
    torch.set_num_threads(config.threads)
    if not config.deterministic:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
