"""How far a run has come. Must not know what a step does."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from ckptrun.errors import StateMismatchError

__all__ = ["Progress"]


@dataclass(slots=True)
class Progress:
    """Counters over the whole run, all resumes included."""

    step: int = 0
    """Optimizer steps done, skipped ones (fp16 overflow) included."""
    samples: int = 0
    """Samples seen by all ranks together."""
    skipped_steps: int = 0
    """Steps whose update was left out because a gradient was not finite."""

    def state_dict(self) -> dict[str, Any]:
        """The counters, by name."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the counters over.

        Raises:
            StateMismatchError: ``state`` names other counters.
        """
        names = {item.name for item in fields(self)}
        if names != set(state):
            wrong = sorted(names ^ set(state))
            raise StateMismatchError(f"progress has the counters {sorted(names)}, not {sorted(state)}.", leaves=wrong)
        for name in names:
            setattr(self, name, int(state[name]))
