"""Group ``proof``: what is checked."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from ckptrun.config.ranges import at_least, named_pattern_list
from ckptrun.errors import ConfigError

__all__ = ["ALL_CONTROLS", "ProofConfig", "ReloadCheck"]

ALL_CONTROLS = "all"
_NO_CONTROLS = "none"
_DEFAULT_CONTROLS = ("rng", "optimizer")


class ReloadCheck(StrEnum):
    """When a checkpoint is loaded into freshly built objects and compared with what was live at the request."""

    none = "none"
    """Never; the run then proves nothing."""
    final = "final"
    """The last checkpoint, at the end of the run, in the processes that have trained: nothing is computed there any
    more that a second model could disturb."""
    every_save = "every_save"
    """Each checkpoint right after its commit, in a process beside each rank; training waits meanwhile."""


@dataclass(kw_only=True, slots=True)
class ProofConfig:
    """What is checked. A run with ``fault=...`` or ``proof=full`` is a proof: several runs, compared."""

    reload: ReloadCheck = ReloadCheck.final
    """When checkpoints are loaded and compared bit by bit with the state at the request."""
    reference: str | None = None
    """The folder of another run of the same config, on as many ranks: at the end this run, all its starts together,
    must have repeated it step by step (loss, gradient norm, learning rate, content of the batches, random streams), and
    the last state must have its digests. A proof makes a reference of its own."""
    full: bool = False
    """Set by the choice ``proof=full``: without a fault, let fresh processes go on from the middle, twice, and compare
    as after a kill."""
    controls: Any = None
    """Components that are left out at load, one after the other, to see that the proof would notice: a list, ``all``,
    or ``none``; unset: ``rng`` and ``optimizer``. One that is named must come out otherwise; of the others those with
    nothing to leave out (no draw from a random stream, an optimizer without state) are told as not exercised."""
    ignore: list[str] = field(default_factory=list)
    """Leaves that are meant to differ from run to run, e.g. ``[timer.*]`` for the component ``components.timer``: they
    are left out of every comparison, and each verdict says so. A pattern names its component and matches something."""
    digest_every_steps: int | None = None
    """Write the digest of every leaf into the ledger after every so many steps; unset: never. Narrows down where a
    difference begins; costs a digest of the whole state each time."""
    resume_parallelism: str | None = None
    """Resume under another choice of ``parallelism``, e.g. ``fsdp``."""
    resume_nproc: int | None = None
    """Resume on another number of ranks."""
    shared: list[str] = field(default_factory=list)
    """Files outside the run folder that one leg of a proof may write and another one read, as nothing depends on who
    wrote them: paths, folders, or patterns with ``*``, e.g. ``[/data/cache/*]``. Bytecode, and caches of compilers and
    downloads, always may. Any other such file makes the verdict not_verified."""
    private: list[str] = field(default_factory=list)
    """Files and folders outside the run folder of which each leg of a proof gets a copy of its own, as they were before
    the proof; that is also how they are left. E.g. ``[/data/cache]``."""

    def __post_init__(self) -> None:
        at_least("proof.digest_every_steps", self.digest_every_steps, 1)
        at_least("proof.resume_nproc", self.resume_nproc, 1)
        if isinstance(self.controls, str) and self.controls in (ALL_CONTROLS, _NO_CONTROLS):
            self.controls = ALL_CONTROLS if self.controls == ALL_CONTROLS else []
        is_list = isinstance(self.controls, list) and all(isinstance(name, str) for name in self.controls)
        if not is_list and self.controls not in (ALL_CONTROLS, None):
            raise ConfigError(
                f"proof.controls must be a list of components such as [rng,optimizer], all, or none, "
                f"got {self.controls!r}."
            )
        named_pattern_list("proof.ignore", self.ignore)
        self.ignore = [pattern.removeprefix("components.") for pattern in self.ignore]
        if self.full and self.reload is ReloadCheck.none:
            raise ConfigError("proof.reload=none contradicts proof=full: a proof compares what comes back.")

    @property
    def control_names(self) -> Sequence[str] | None:
        """Components to leave out; None: all that there are."""
        if self.controls == ALL_CONTROLS:
            return None
        return _DEFAULT_CONTROLS if self.controls is None else tuple(self.controls)

    @property
    def reshapes(self) -> bool:
        """Whether the proof resumes on another mesh."""
        return self.resume_parallelism is not None or self.resume_nproc is not None
