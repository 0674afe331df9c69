"""Says which code of the user's a component is. Torch-free."""

from ckptrun.config.custom import Custom
from ckptrun.config.run import RunConfig

__all__ = ["code_of"]


def code_of(config: RunConfig, component: str | None) -> str:
    """Return where the code of ``component`` lies, to be said after a sentence; empty where it is nobody's own."""
    if component in config.components:
        return f" It is components.{component}._target_={config.components[component].get('_target_')}."
    group = getattr(config, component, None) if component in ("model", "optimizer", "schedule", "data") else None
    return f" It is {component}._target_={group.target}." if isinstance(group, Custom) else ""
