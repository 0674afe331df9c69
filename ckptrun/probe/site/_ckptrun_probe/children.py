"""Lets children hear as well whose environment the job has made itself."""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any

__all__ = ["hook_children"]

_VARIABLE = "CKPTRUN_PROBE"
_SITE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100, PTH120


def hook_children(listener: Any, module: ModuleType) -> None:
    """``subprocess`` is there: a child with another environment is told of the probe all the same.

    Args:
        listener: Who listens in this process.
        module: The module.
    """
    original = module.Popen.__init__

    @functools.wraps(original)
    def __init__(self: Any, *arguments: Any, **options: Any) -> None:
        given, plan = options.get("env"), listener.plan.path
        if given is not None or not _hears(os.environ, plan):
            options["env"] = _heard(os.environ if given is None else given, plan)
        original(self, *arguments, **options)

    module.Popen.__init__ = __init__


def _hears(environment: Any, plan: str) -> bool:
    path = environment.get("PYTHONPATH", "").split(os.pathsep)
    return environment.get(_VARIABLE) == plan and _SITE in path


def _heard(environment: Any, plan: str) -> Any:
    """The same environment with what a child needs to be heard; as it is where that cannot be said."""
    try:
        if _hears(environment, plan):
            return environment
        path = [_SITE, *filter(None, [environment.get("PYTHONPATH")])]
        return {**environment, _VARIABLE: plan, "PYTHONPATH": os.pathsep.join(path)}
    except (AttributeError, TypeError):
        return environment
