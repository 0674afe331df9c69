"""The state of a run as components, those of no config group among them: RNG, EMA, progress, objects of the user's own.

A component is any object with ``state_dict()`` and ``load_state_dict(state)``. What ties them together into one
checkpoint is ``components``.
"""

from ckptrun.state.ema import ExponentialMovingAverage
from ckptrun.state.progress import Progress
from ckptrun.state.rng import RNG, preserved, seed_streams, stream_digests

__all__ = ["RNG", "ExponentialMovingAverage", "Progress", "preserved", "seed_streams", "stream_digests"]
