"""Group ``crash``: judge every state of the files that a kill or a power cut within a save of a command can leave."""

from dataclasses import dataclass
from enum import StrEnum

from ckptrun.config.ranges import at_least

__all__ = ["CrashConfig", "CrashKind"]


class CrashKind(StrEnum):
    """What is judged; the names are those of the choices."""

    none = "none"
    """No crash states: a proof kills the job itself, see ``fault``."""
    save = "save"
    """All that a kill or a power cut can leave within one save of a command (``job=command``): its system calls are
    recorded in one run, each state is built from the record, and the job is resumed from it."""


@dataclass(kw_only=True, slots=True)
class CrashConfig:
    """Which crash states are judged."""

    kind: CrashKind = CrashKind.none
    """Set by the choice: ``crash=save``."""
    step: int | None = None
    """The step whose save it is; unset: of those after which the job takes ``resume_steps`` more, the first with an
    older checkpoint beside it that is removed or replaced meanwhile; else the first with an older one beside it."""
    resume_steps: int = 2
    """How many steps a resumed job takes until it is judged."""
    power_cut: bool = True
    """Whether also what a power cut can leave: what was not synced lost, cut, or in another order."""
    block_bytes: int = 4096
    """A write that is cut ends at a multiple of it, as the kernel ends one."""
    max_states: int | None = None
    """At most so many states are judged, spread over all of them; unset: all."""

    def __post_init__(self) -> None:
        at_least("crash.step", self.step, 1)
        at_least("crash.resume_steps", self.resume_steps, 1)
        at_least("crash.block_bytes", self.block_bytes, 1)
        at_least("crash.max_states", self.max_states, 1)
