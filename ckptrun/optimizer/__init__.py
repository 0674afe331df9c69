"""What turns gradients into updates: parameter groups, the built-in optimizers, and their state by name.

:class:`OptimizerState` is the ``optimizer`` component of the state.
"""

from ckptrun.optimizer.construct import build_optimizer
from ckptrun.optimizer.groups import parameter_groups
from ckptrun.optimizer.joined import JoinedOptimizer
from ckptrun.optimizer.state import OptimizerState
from ckptrun.optimizer.whole import WholeTensors

__all__ = ["JoinedOptimizer", "OptimizerState", "WholeTensors", "build_optimizer", "parameter_groups"]
