"""When to save and what to keep: pure decisions, no files."""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["KeepLast", "SaveInterval"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveInterval:
    """Save after every ``interval_steps`` steps, after the last step, and after ``further_steps``."""

    interval_steps: int
    last_step: int
    further_steps: frozenset[int] = frozenset()

    def should_save(self, step: int) -> bool:
        """Whether a checkpoint is due after ``step``."""
        return step % self.interval_steps == 0 or step == self.last_step or step in self.further_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class KeepLast:
    """Keep the newest ``count`` checkpoints; all, when it is None. The newest is never removed."""

    count: int | None

    def to_remove(self, committed_steps: Sequence[int], *, newest: int) -> list[int]:
        """The steps that may go, oldest first.

        Only steps that are committed count: what is in flight saves nobody. Steps above ``newest``, the one that was
        just committed, are of another continuation and not this policy's to judge.
        """
        if self.count is None:
            return []
        return sorted(step for step in committed_steps if step <= newest)[: -max(1, self.count)]
