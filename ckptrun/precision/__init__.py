"""What fp16 needs besides a dtype: the loss scale; the ``scaler`` component of the state."""

from ckptrun.precision.loss_scaler import LossScaler

__all__ = ["LossScaler"]
