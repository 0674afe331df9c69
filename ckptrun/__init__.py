"""ckptrun proves that a training job survives being killed.

The layers, each importing only from those above it in this list:

=====  ============================================================================================================
L0     config, errors, exit_codes, values, words, text, embedded, memory, targets, console, files, processes, forks,
       public_names, ranks, digest, elements
L1     model, data, optimizer, schedule, precision, parallelism, state, engine, checkpoint, fault, record
L2     trainer, proof
L3     build
L4     formats
L5     launch, tools
L6     command_line, app, __main__, pytest_plugin
=====  ============================================================================================================

The public names are imported on first use, so that ``import ckptrun`` and ``ckptrun --help`` load no torch.
``ckptrun.digest`` is the function, whatever was imported before; see ``ckptrun.public_names``.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckptrun.public_names import Package

if TYPE_CHECKING:
    from ckptrun.digest import digest
    from ckptrun.engine.planner import PlanCache
    from ckptrun.engine.staging import HostStager
    from ckptrun.engine.storage import ShardReader, ShardWriter
    from ckptrun.launch.api import prove

__version__ = "0.1.0"

__all__ = ["HostStager", "PlanCache", "ShardReader", "ShardWriter", "__version__", "digest", "prove"]

_HOMES = {
    "HostStager": "ckptrun.engine.staging",
    "PlanCache": "ckptrun.engine.planner",
    "ShardReader": "ckptrun.engine.storage",
    "ShardWriter": "ckptrun.engine.storage",
    "digest": "ckptrun.digest",
    "prove": "ckptrun.launch.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ckptrun' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


sys.modules[__name__].__class__ = Package
