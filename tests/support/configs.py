"""Configs as a command line makes them."""

import copy
import functools

from ckptrun.config.compose import config_from
from ckptrun.config.run import RunConfig


def config_of(*overrides: str) -> RunConfig:
    """The config of a command line; many tests ask for the same one, and Hydra takes its time."""
    return copy.deepcopy(_composed(overrides))


@functools.cache
def _composed(overrides: tuple[str, ...]) -> RunConfig:
    return config_from(overrides)
