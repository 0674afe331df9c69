"""The users' door: a class or function of their own, by name, with its arguments."""

from dataclasses import dataclass, field
from typing import Any

from ckptrun.config.ranges import not_empty

__all__ = ["Custom"]


# No slots: two slotted bases cannot be combined, and a custom choice derives from its group too.
@dataclass(kw_only=True)
class Custom:
    """A callable of the user's own. Mixed into the ``custom`` choice of a group."""

    _target_: str = ""
    """``package.module.Name``, importable from the working folder, or ``path/to/file.py:Name``."""

    args: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments for it, e.g. ``'model.args={width: 64}'``."""

    @property
    def target(self) -> str:
        """The ``_target_`` as given."""
        return self._target_

    def check_target(self, group: str) -> None:
        """Raise ConfigError when no target was given. Called once the config is complete, not while it is built."""
        not_empty(f"{group}._target_", self._target_, f"For example: {group}._target_=my_module.MyClass")
