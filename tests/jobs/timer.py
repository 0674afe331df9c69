"""A component whose state is meant to differ from run to run."""

import time
from typing import Any


class Timer:
    """Seconds since the start, over all starts; computed when the state is asked for."""

    def __init__(self) -> None:
        self.base, self.began = 0.0, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        return {"elapsed": self.base + time.monotonic() - self.began}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.base, self.began = state["elapsed"], time.monotonic()
