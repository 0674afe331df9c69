"""ckptrun proves that a training job survives being killed.

The layers, each importing only from those above it in this list:

=====  ============================================================================================================
L0     console, elements, errors, files, forks, local_part, probe, processes, public_names, rank_names, text
L1     config, exit_codes, memory, ranks, targets, values
L2     data, digest, embedded, model, parallelism, precision, process_groups, schedule
L3     engine, optimizer, state
L4     checkpoint, fault, formats
L5     evidence, trainer
L6     build, checks, report
L7     run, tools
L8     command_line, launch
L9     proof, sweep
L10    foreign
L11    crash
L12    carry_out
L13    api, app
L14    __main__, pytest_plugin
=====  ============================================================================================================

The public names are imported on first use, so that ``import ckptrun`` and ``ckptrun --help`` load no torch.
``ckptrun.digest`` is the function, whatever was imported before; see ``ckptrun.public_names``.
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ckptrun.public_names import Package

if TYPE_CHECKING:
    from ckptrun.api import prove
    from ckptrun.digest import digest
    from ckptrun.engine.plan_cache import PlanCache
    from ckptrun.engine.staging import HostStager
    from ckptrun.engine.storage import ShardReader, ShardWriter

__version__ = "0.1.0"

__all__ = ["HostStager", "PlanCache", "ShardReader", "ShardWriter", "__version__", "digest", "prove"]

_HOMES = {
    "HostStager": "ckptrun.engine.staging",
    "PlanCache": "ckptrun.engine.plan_cache",
    "ShardReader": "ckptrun.engine.storage",
    "ShardWriter": "ckptrun.engine.storage",
    "digest": "ckptrun.digest",
    "prove": "ckptrun.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ckptrun' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


sys.modules[__name__].__class__ = Package
