"""What a proof needs of a job: to start it in a folder, to know its steps and ranks, to find what it has saved.

The legs of a proof know no more of a job than this, so that whose loop it is makes no difference. A run of ours is
:class:`~ckptrun.proof.own_job.OwnJob`, a command :class:`~ckptrun.foreign.job.CommandJob`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ckptrun.config.precision import PrecisionConfig
from ckptrun.engine.layout import step_folder
from ckptrun.fault import PlannedFault
from ckptrun.launch.local import Outcome
from ckptrun.run.leg import Leg

__all__ = ["Run", "StartRun", "Subject", "TimedOutcome"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of the job: all starts in one folder.

    Attributes:
        name: For people, and of its folder: ``run`` is the one that is killed and resumed.
        folder: What it leaves.
        checkpoints: Where it saves: a path or URL.
        ranks: How many it has.
        is_later: Whether it is on the mesh that the run under proof is resumed on.
        saves: Whether it saves at all.
        resume_from: The checkpoint that each start begins with; None: its own newest, or, where it has none, whatever
            the job begins with.
    """

    name: str
    folder: Path
    checkpoints: str
    ranks: int
    is_later: bool = False
    saves: bool = True
    resume_from: str | None = None

    def checkpoint(self, step: int) -> str:
        """Where the checkpoint of ``step`` lies, if there is one."""
        return step_folder(self.checkpoints, step)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedOutcome:
    """How a set of ranks ended, and how long that took."""

    outcome: Outcome
    seconds: float


class Subject(Protocol):
    """A job that can be started again and again."""

    @property
    def steps(self) -> int:
        """After how many it is complete."""

    @property
    def reshapes(self) -> bool:
        """Whether it goes on on another mesh once it was resumed."""

    @property
    def keep_last(self) -> int | None:
        """How many checkpoints it leaves of those that it has saved; None: all, or it is not known."""

    @property
    def precision(self) -> PrecisionConfig | None:
        """What it computes with; None where it is not known."""

    @property
    def stops(self) -> Sequence[int]:
        """After which steps its starts end by themselves in a proof without a fault."""

    @property
    def title(self) -> str:
        """A sentence for people: what is proved, and what is going to happen to it, as far as that is known before."""

    def plan(self) -> tuple[PlannedFault, ...]:
        """Return what fails, in order; called once the reference has come to its end.

        Raises:
            ConfigError: A fault can never strike.
        """

    def run(self, name: str, *, is_later: bool = False, saves: bool = True, resume_from: str | None = None) -> Run:
        """Return a run of the job; nothing is started or made. Called ``run`` it is the one under proof.

        Args:
            name: Of the run.
            is_later: On the mesh that the run under proof is resumed on.
            saves: Whether it saves at all.
            resume_from: What each of its starts begins with, see :class:`Run`.
        """

    def prepare(self) -> None:
        """Begin with what takes long and can be done beside the first leg; returns at once."""

    def start(self, run: Run, leg: Leg) -> TimedOutcome:
        """Start all ranks of one leg and wait until they have ended.

        A run beside the one under proof begins in an empty place.
        """

    def has_checkpoint(self, run: Run) -> bool:
        """Whether there is something that a start of ``run`` can go on from."""

    def leaf_names(self, run: Run) -> Sequence[str]:
        """Return what the state of a run that has ended is made of."""

    def code_of(self, component: str | None) -> str:
        """Return a sentence that says where the code of a component lies; empty where nothing is known."""


StartRun = Callable[..., TimedOutcome]
"""Starts one more leg of a proof: ``(run, **what)``, where ``what`` are the fields of its leg."""
