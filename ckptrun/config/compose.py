"""From a command line to a checked config: what Hydra is given, and what becomes of what it composes. Torch-free."""

import re
from collections.abc import Collection, Sequence

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig

from ckptrun.config.choices import CONF_DIR, EXPERIMENT
from ckptrun.config.job import quoted_override
from ckptrun.config.mistakes import FAULTS_OF_A_CONFIG, check_keys, check_overrides, explained
from ckptrun.config.run import RunConfig, from_hydra
from ckptrun.config.schemas import SCHEMAS
from ckptrun.errors import ConfigError

__all__ = ["checked", "composed", "config_from", "plain_overrides", "register"]

_OPEN_DICT = re.compile(r"(model|optimizer|schedule|data)\.args[.=]|model\.tensor_plan[.=]|components[.=]|job\.env[.=]")


def config_from(overrides: Sequence[str]) -> RunConfig:
    """Return the checked config of a command line.

    Args:
        overrides: As typed after ``ckptrun``, e.g. ``["parallelism=fsdp", "fault=sigkill"]``.

    Raises:
        ConfigError: A key, a value or a choice is wrong.
    """
    check_overrides(overrides, added={})
    return composed(overrides, plain_overrides(overrides))


def composed(overrides: Sequence[str], hydra_overrides: Sequence[str]) -> RunConfig:
    """Compose outside of Hydra's own command line, and check.

    Args:
        overrides: As typed; each for itself is right.
        hydra_overrides: The same as Hydra takes them.

    Raises:
        ConfigError: They do not fit together.
    """
    register()
    experiment = next((text.partition("=")[2] for text in overrides if text.startswith(f"{EXPERIMENT}=")), None)
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        try:
            config = compose("config", overrides=list(hydra_overrides))
        except FAULTS_OF_A_CONFIG as error:
            raise explained(error, overrides) from error
    found = checked(config, overrides=overrides, experiment=experiment)
    typed = {text.lstrip("+~").partition("=")[0] for text in overrides}
    axes = [key for key in found.sweep.axes if key not in typed]
    if axes:
        raise ConfigError(
            f"experiment={experiment} is a sweep, over {', '.join(axes)}: run it from the command line "
            f"(ckptrun experiment={experiment}), or give each of them one value."
        )
    return found


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


def register() -> None:
    """Hand the dataclasses to Hydra: ``schema/<group>_<name>`` is what ``conf/<group>/<name>.yaml`` builds upon."""
    store = ConfigStore.instance()
    store.store(name="base_run", node=RunConfig)
    for group, schemas in SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group="schema", name=f"{group}_{name}", node=node)


def plain_overrides(overrides: Sequence[str], *, added_groups: Collection[str] = ()) -> list[str]:
    """Take Hydra's ``+`` from keys, and give it to those that need it.

    ``model.args.width=64`` adds a key to a dict of the user's own, which has no schema. Everywhere else a ``+`` would
    only put a misspelled key past the check.

    Args:
        overrides: As typed.
        added_groups: Groups that a folder of the user's own brings; they are added to the defaults with ``+``.
    """
    return [_plain(text, added_groups) for text in overrides]


def _plain(text: str, added_groups: Collection[str]) -> str:
    bare = text.lstrip("+")
    key = bare.partition("=")[0]
    bare = quoted_override(bare)
    if _OPEN_DICT.match(bare):
        return f"++{bare}"
    return text if "@" in key or key in added_groups or key.startswith(("hydra.", "hydra/")) else bare
