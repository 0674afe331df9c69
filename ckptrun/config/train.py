"""Section ``train``: the loop itself."""

import math
from dataclasses import dataclass, field

from ckptrun.config.ranges import at_least, between, named_pattern_list
from ckptrun.errors import ConfigError

__all__ = ["TrainConfig"]


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """How long, how fast, how exact."""

    steps: int = 60
    """Optimizer steps of the whole run, over all resumes."""
    seed: int = 0
    """Decides initial values, order of samples, and every random stream."""
    micro_batch: int = 8
    """Samples per data-parallel rank in one forward."""
    accumulate: int = 1
    """Forward/backward passes per optimizer step."""
    global_batch: int | None = None
    """Samples per step over all ranks; if set, ``accumulate`` follows from it and must be left at 1."""
    clip_norm: float | None = 1.0
    """Largest global gradient norm; unset (``null``): the norm is measured, nothing is clipped."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay; unset: none."""
    activation_checkpointing: bool = False
    """Recompute the activations of each block in backward instead of keeping them."""
    compile: bool = False
    """``torch.compile`` each block (the whole model for ``none`` and ``ddp``)."""
    freeze: list[str] = field(default_factory=list)
    """Patterns of parameter names that are not trained, e.g. ``['blocks.0.*']``."""
    deterministic: bool = True
    """Same bits every time: deterministic algorithms only; an operation that has none fails by name."""
    threads: int = 1
    """Compute threads per rank; same bits need the same number."""
    log_interval_steps: int = 10
    """Print a line every so many steps where there is no terminal."""

    def __post_init__(self) -> None:
        for key in ("steps", "micro_batch", "accumulate", "threads", "log_interval_steps"):
            at_least(f"train.{key}", getattr(self, key), 1)
        at_least("train.global_batch", self.global_batch, 1)
        between("train.seed", self.seed, 0, 2**63)
        between("train.ema_decay", self.ema_decay, 0.0, 1.0)
        named_pattern_list("train.freeze", self.freeze)
        if self.clip_norm is not None and not 0 < self.clip_norm < math.inf:
            raise ConfigError(f"train.clip_norm must be above 0, got {self.clip_norm}; use null to clip nothing.")
        if self.global_batch is not None and self.accumulate != 1:
            raise ConfigError(
                f"train.global_batch={self.global_batch} decides the accumulation; leave train.accumulate at 1 "
                f"(got {self.accumulate}) or unset train.global_batch."
            )

    def accumulation(self, data_parallel: int) -> int:
        """Forward/backward passes per step on ``data_parallel`` ranks that see different samples.

        Raises:
            ConfigError: ``train.global_batch`` is not a multiple of what one pass over all ranks takes.
        """
        if self.global_batch is None:
            return self.accumulate
        one_pass = self.micro_batch * data_parallel
        if self.global_batch % one_pass:
            raise ConfigError(
                f"train.global_batch ({self.global_batch}) must be a multiple of train.micro_batch * data-parallel "
                f"ranks = {self.micro_batch} * {data_parallel} = {one_pass}."
            )
        return self.global_batch // one_pass
