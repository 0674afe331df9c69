"""Checks of single values, with errors that name the key as the user types it."""

import math
from collections.abc import Iterable

from ckptrun.errors import ConfigError

__all__ = ["at_least", "between", "named_pattern_list", "not_empty"]


_LARGEST = 2**63
"""Of what is counted."""


def at_least(key: str, value: float | None, minimum: float) -> None:
    """Raise ConfigError unless ``value`` is unset or a finite number that is at least ``minimum``."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{key} must be a number, got {value!r}.")
    if not value >= minimum:
        raise ConfigError(f"{key} must be at least {minimum}, got {value}.")
    if value >= _LARGEST and (isinstance(value, int) or math.isinf(value)):
        raise ConfigError(f"{key}={value} is too large.")


def between(key: str, value: float | None, low: float, high: float) -> None:
    """Raise ConfigError unless ``value`` is unset or ``low <= value < high``."""
    if value is not None and not low <= value < high:
        raise ConfigError(f"{key} must be at least {low} and less than {high}, got {value}.")


def not_empty(key: str, value: str, way_out: str) -> None:
    """Raise ConfigError when the text ``value`` is empty or was never given."""
    if not value or value == "???":
        raise ConfigError(f"{key} must be given. {way_out}")


def named_pattern_list(key: str, patterns: Iterable[str]) -> None:
    """Raise ConfigError when one of ``patterns`` is empty."""
    if any(not pattern for pattern in patterns):
        raise ConfigError(f"{key} holds an empty pattern; give module or leaf names such as 'blocks.0.*'.")
