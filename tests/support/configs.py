"""Configs as a command line makes them."""

import copy
import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckptrun.config.compose import config_from
from ckptrun.config.run import RunConfig


def config_of(*overrides: str) -> RunConfig:
    """The config of a command line; many tests ask for the same one, and Hydra takes its time."""
    return copy.deepcopy(_composed(overrides))


def run_in(folder: Path, *keys: str, **checkpoint: Any) -> RunConfig:
    """The same of a run in ``folder``, with these keys of ``checkpoint``."""
    config = config_of(*keys)
    config.run.dir = str(folder)
    config.checkpoint = replace(config.checkpoint, **checkpoint)
    return config


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    return config_from(overrides)
