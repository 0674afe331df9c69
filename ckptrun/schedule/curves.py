"""The learning rate of a step as a share of the peak, in closed form: a function of the step, so nothing adds up.

Must not know optimizers.
"""

import bisect
import math
from collections.abc import Callable
from functools import partial

from ckptrun.config.schedule import ConstantConfig, CosineConfig, MultiStepConfig, ScheduleConfig, WSDConfig
from ckptrun.errors import InternalError

__all__ = ["Curve", "curve"]

Curve = Callable[[int], float]
"""Number of steps done -> share of the peak learning rate for the next one."""


def curve(config: ScheduleConfig, *, steps: int) -> Curve:
    """Return the curve that ``config`` describes for a run of ``steps`` steps (``train.steps``).

    A run that is made longer gets the curve of the longer run from there on. Steps past the end keep the share of the
    last one. Where warm-up and decay do not both fit, warm-up comes first.
    """
    last = steps - 1
    match config:
        case ConstantConfig():
            return _constant
        case CosineConfig(warmup_steps=warmup, final_share=final):
            return partial(_cosine, warmup=warmup, last=last, final=final)
        case WSDConfig(warmup_steps=warmup, decay_steps=decay, final_share=final):
            return partial(_warmup_stable_decay, warmup=warmup, begin=max(warmup, last - decay), last=last, final=final)
        case MultiStepConfig(milestones=milestones, factor=factor):
            return partial(_multi_step, milestones=tuple(milestones), factor=factor)
        case _:
            raise InternalError(f"No curve is known for {type(config).__name__}.")


def _constant(_: int) -> float:
    return 1.0


def _warming_up(step: int, warmup: int) -> float | None:
    """1/(n+1), 2/(n+1) ... over ``n`` steps, so that the first step is not lost and the peak comes right after."""
    return (step + 1) / (warmup + 1) if step < warmup else None


def _progress(step: int, begin: int, last: int) -> float:
    """0 at ``begin``, 1 at ``last`` and after."""
    return min(1.0, (step - begin) / max(1, last - begin))


def _cosine(step: int, *, warmup: int, last: int, final: float) -> float:
    share = _warming_up(step, warmup)
    if share is not None:
        return share
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * _progress(step, warmup, last)))


def _warmup_stable_decay(step: int, *, warmup: int, begin: int, last: int, final: float) -> float:
    share = _warming_up(step, warmup)
    if share is not None:
        return share
    return 1.0 if step <= begin else 1.0 + (final - 1.0) * _progress(step, begin, last)


def _multi_step(step: int, *, milestones: tuple[int, ...], factor: float) -> float:
    return float(factor ** bisect.bisect_right(milestones, step))
