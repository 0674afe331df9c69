"""A config composed outside of Hydra's own command line: for a plain run, and for Python callers. Torch-free."""

from collections.abc import Sequence

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from ckptrun.config.choices import CONF_DIR, EXPERIMENT
from ckptrun.config.mistakes import FAULTS_OF_A_CONFIG, check_keys, check_overrides, explained
from ckptrun.config.overrides import plain_overrides
from ckptrun.config.register import register
from ckptrun.config.run import RunConfig, from_hydra

__all__ = ["CONF_DIR", "checked", "config_from"]


def config_from(overrides: Sequence[str]) -> RunConfig:
    """Return the checked config of a command line.

    Args:
        overrides: As typed after ``ckptrun``, e.g. ``["parallelism=fsdp", "fault=sigkill"]``.

    Raises:
        ConfigError: A key, a value or a choice is wrong.
    """
    register()
    check_overrides(overrides, added={})
    experiment = next((text.partition("=")[2] for text in overrides if text.startswith(f"{EXPERIMENT}=")), None)
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        try:
            composed = compose("config", overrides=plain_overrides(overrides))
        except FAULTS_OF_A_CONFIG as error:
            raise explained(error, overrides) from error
    return checked(composed, overrides=overrides, experiment=experiment)


def checked(composed: DictConfig, *, overrides: Sequence[str], experiment: str | None) -> RunConfig:
    """Turn what Hydra composed of ``overrides`` into a checked config.

    Raises:
        ConfigError: A value is of the wrong type, out of range or contradicts another; names the key.
    """
    try:
        check_keys(composed)
        return from_hydra(composed, overrides=list(overrides), experiment=experiment)
    except FAULTS_OF_A_CONFIG as error:
        raise explained(error, overrides) from error
