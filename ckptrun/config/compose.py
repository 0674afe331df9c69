"""A config composed outside of Hydra's own command line: for Python callers. Torch-free."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException

from ckptrun.config.overrides import open_dicts
from ckptrun.config.register import register
from ckptrun.config.run import RunConfig, from_hydra
from ckptrun.errors import ConfigError

__all__ = ["CONF_DIR", "config_from"]


def _conf_dir() -> Path:
    """Where the choices lie: inside the package when it was installed from a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "conf"
    return inside if (inside / "config.yaml").is_file() else package.parent / "conf"


CONF_DIR = _conf_dir()
_EXPERIMENT = "experiment="


def config_from(overrides: Sequence[str]) -> RunConfig:
    """Return the checked config of a command line.

    Args:
        overrides: As typed after ``ckptrun``, e.g. ``["parallelism=fsdp", "fault=sigkill"]``.

    Raises:
        ConfigError: A key, a value or a choice is wrong.
    """
    register()
    experiment = next((text.removeprefix(_EXPERIMENT) for text in overrides if text.startswith(_EXPERIMENT)), None)
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        try:
            composed = compose("config", overrides=open_dicts(overrides))
        except HydraException as error:
            raise ConfigError(str(error)) from error
    return from_hydra(composed, overrides=list(overrides), experiment=experiment)
