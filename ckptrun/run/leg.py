"""One set of ranks that a proof starts: what it does beside training. Torch-free; travels to every rank.

The folder of a proof::

    <run>/                          the run that is killed and resumed: ledger/, checkpoints/, verdict.json ...
        proof.json                  says that the folder belongs to a proof, which may do it anew
        faults/                     what has fired
        logs/                       what ranks printed, a file per start and rank
        files/                      what ranks opened outside of the run folder, likewise
        proof/reference/            the run that nothing happens to; likewise controls/, traced_reference/ ...
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ckptrun.fault.plan import PlannedFault
from ckptrun.rank_names import rank_name
from ckptrun.run.watch.file_watch import FileWatch

__all__ = ["Controls", "Leg", "TraceWindow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceWindow:
    """The steps whose operations are written down, both ends included."""

    first_step: int
    last_step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """Which components are left out, one after the other, and what the outcome is held against."""

    components: Sequence[str] | None
    """None: all there are."""
    checkpoint: str
    reference: Path
    ignore: tuple[str, ...] = ()
    """Leaves that are not compared: ``proof.ignore``."""
    are_named: bool = False
    """Whether somebody has asked for just these: then nothing excuses one that changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """What ranks do. A run without a proof is a leg with nothing set.

    Attributes:
        name: For people: ``reference``, ``run``, ...
        start: How often this run has been started before.
        in_proof: Whether what comes out is judged by who started the ranks: no verdict, no summary.
        faults: All that are planned for this run; which of them may fire, those that have say.
        stop_at: End after this step, having saved it; None: after the last.
        saves_after_resume: Save one step after the start, too.
        saves_at_end_only: Nothing is saved but the last step.
        samples: Write the digest of every single sample into the ledger.
        trace: Steps to write the operations of.
        controls: Train with components left out, instead of running.
        log: Where what is printed goes, a file per rank; None: to the terminal.
        files: What is noted of the files that ranks open; None: nothing.
        fresh: Whether it runs in the other interpreter of the proof, see ``launch/local.py``.
        begins_as: The start of the run whose private files it finds; None: as they were before the proof.
    """

    name: str = "run"
    start: int = 0
    in_proof: bool = False
    faults: tuple[PlannedFault, ...] = ()
    stop_at: int | None = None
    saves_after_resume: bool = False
    saves_at_end_only: bool = False
    samples: bool = False
    trace: TraceWindow | None = None
    controls: Controls | None = None
    log: Path | None = None
    files: FileWatch | None = None
    fresh: bool = False
    begins_as: int | None = None

    def log_file(self, rank: int) -> Path | None:
        """Where ``rank`` prints to."""
        return None if self.log is None else self.log / f"{self.rank_name(rank)}.log"

    def rank_name(self, rank: int) -> str:
        """What files of one rank in one start are called."""
        return rank_name(rank, start=self.start)
