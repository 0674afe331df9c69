"""Hands the dataclasses to Hydra: ``schema/<group>_<name>`` is what ``conf/<group>/<name>.yaml`` builds upon."""

from hydra.core.config_store import ConfigStore

from ckptrun.config.run import RunConfig
from ckptrun.config.schemas import SCHEMAS

__all__ = ["register"]


def register() -> None:
    """Store every schema. Called once, before Hydra composes."""
    store = ConfigStore.instance()
    store.store(name="base_run", node=RunConfig)
    for group, schemas in SCHEMAS.items():
        for name, node in schemas.items():
            store.store(group="schema", name=f"{group}_{name}", node=node)
