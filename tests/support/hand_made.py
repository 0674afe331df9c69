"""A job of no ranks: each start writes by hand what ranks would leave, so that a proof of it takes no time."""

import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckptrun.config.precision import PrecisionConfig
from ckptrun.config.run import RunConfig
from ckptrun.engine.commit import list_committed
from ckptrun.engine.layout import parse_step
from ckptrun.evidence.run_folder import EVENTS, ledger_file
from ckptrun.evidence.starts import read_starts
from ckptrun.evidence.verdict import Check, Status
from ckptrun.fault import FaultRecord, PlannedFault
from ckptrun.files import append_line
from ckptrun.launch.local import Outcome
from ckptrun.proof.outside_files import OutsideFiles
from ckptrun.proof.own_job import OwnJob
from ckptrun.proof.places import leaf_names
from ckptrun.proof.private_files import PrivateFiles
from ckptrun.proof.subject import Run, TimedOutcome
from ckptrun.run.leg import Leg
from tests.support.saves import live_state, save

STEPS = 6
SAVES = (2, 4, 6)

Act = Callable[["HandMade", Run, Leg], Outcome]
"""What one start does."""


def line(step: int, loss: float = 1.0, start: int = 0, rank: int = 0, ranks: int = 1) -> dict[str, Any]:
    """What the ledger says of a step."""
    digits = {name: float(loss).hex() for name in ("loss", "gradient_norm", "learning_rate")}
    # Four samples a step, whatever the number of ranks.
    own = 4 // ranks
    samples = [f"sample {4 * step + own * rank + i}" for i in range(own)]
    data = {"position": 4 * step, "rank": rank, "of": ranks, "samples": [samples]}
    return {"step": step, "start": start, **digits, "skipped": False, "batch": f"batch {step}", "rng": {}, "data": data}


@functools.cache
def _place() -> tempfile.TemporaryDirectory[str]:
    """Where they are saved, once per process; goes when it ends."""
    return tempfile.TemporaryDirectory(prefix="ckptrun-hand-made-")


@functools.cache
def _saved(step: int) -> Path:
    """The checkpoint of a step; the same state each time."""
    return save(Path(_place().name), step, live_state(step))


def put_checkpoint(root: str, step: int) -> str:
    """Commit one; return its folder."""
    folder = Path(root) / _saved(step).name
    shutil.copytree(_saved(step), folder, dirs_exist_ok=True)
    return str(folder)


def event(run: Run, kind: str, **facts: Any) -> None:
    """Let a run say something of itself."""
    run.folder.mkdir(parents=True, exist_ok=True)
    append_line(run.folder / EVENTS, {"event": kind, **facts})


def say_failure(run: Run, text: str, **facts: Any) -> None:
    """What a rank says before it ends."""
    event(run, "failure", **{"rank": 0, "text": text, "leaves": [], "component": None, **facts})


def own_job(config: RunConfig, after: RunConfig | None = None, *, command: Sequence[str] = ("ckptrun",)) -> OwnJob:
    """A run of ours as a subject, in a folder that nobody has claimed."""
    return OwnJob(
        config,
        after or config,
        plan=(),
        outside=OutsideFiles(config, known={}),
        private=PrivateFiles(config),
        command=command,
    )


def begin(run: Run, leg: Leg) -> int:
    """Begin a start as ranks do: with the newest checkpoint, or that which it was given; return its step."""
    steps = list_committed(run.resume_from or run.checkpoints)
    step = steps[-1] if steps else 0
    root = run.resume_from or run.checkpoints
    resumed_from = f"{root}/step_{step:08d}" if step else None
    event(run, "launch", start=leg.start, hash_seed="45" if leg.fresh else "32", fresh=leg.fresh)
    event(run, "start", step=step, resumed_from=resumed_from, world_size=run.ranks)
    if step:
        check(run, "loaded_equals_saved", leaves=9, ranks=run.ranks)
    return step


def check(run: Run, name: str, status: Status = Status.equal, **covered: int) -> None:
    """Let a run say what it has compared by itself."""
    event(run, "check", **Check(name=name, status=status, detail="by hand", covered=covered).as_json())


def train(run: Run, leg: Leg, *, step: int, last: int, loss: Mapping[int, float] | None = None) -> None:
    """Take the steps after ``step``, and save as a leg is told to."""
    saves = {STEPS} if leg.saves_at_end_only else {*SAVES, leg.stop_at, *({step + 1} if leg.saves_after_resume else ())}
    for now in range(step + 1, last + 1):
        for rank in range(run.ranks):
            ledger = ledger_file(run.folder, rank)
            ledger.parent.mkdir(parents=True, exist_ok=True)
            value = (loss or {}).get(now, 1.0 / now)
            append_line(ledger, line(now, value, start=leg.start, rank=rank, ranks=run.ranks))
        if now in saves:
            event(run, "commit", folder=put_checkpoint(run.checkpoints, now))


def does_it_right(job: "HandMade", run: Run, leg: Leg) -> Outcome:
    """Go on from what there is, to the next fault, to where it is told to stop, or to the end."""
    step = begin(run, leg)
    fired = {fault.index for fault in FaultRecord(run.folder).fired()}
    fault = next((fault for fault in leg.faults if fault.index not in fired), None)
    if fault is not None and fault.step is not None:
        train(run, leg, step=step, last=fault.step)
        FaultRecord(run.folder).note(fault, rank=0, step=fault.step)
        return Outcome(exit_code=1, killed={0: 9})
    train(run, leg, step=step, last=leg.stop_at or STEPS)
    check(run, "replicas", leaves=9, ranks=run.ranks)
    event(run, "stopped" if leg.stop_at else "end")
    return Outcome(exit_code=0)


def does_controls(job: "HandMade", run: Run, leg: Leg) -> Outcome:
    """Find what was left out."""
    begin(run, leg)
    facts = {"is_exercised": True, "is_found": True, "blamed": ["rng"], "detail": "without rng: loss differed"}
    event(run, "control", component="rng", **facts)
    event(run, "stopped")
    return Outcome(exit_code=0)


@dataclass(frozen=True, slots=True)
class Asked:
    """A start that was asked for."""

    run: Run
    leg: Leg

    @property
    def name(self) -> str:
        """Of the run, with the number of its later starts."""
        return self.run.name if not self.leg.start else f"{self.run.name} {self.leg.start}"

    @property
    def resume_from(self) -> int | str | None:
        """The step of a checkpoint, or the place, that it was given."""
        place = self.leg.controls.checkpoint if self.leg.controls is not None else self.run.resume_from
        return None if place is None else parse_step(Path(place).name) or place


class HandMade:
    """See :class:`~ckptrun.proof.subject.Subject`.

    Args:
        folder: Of the run under proof.
        stops: Where starts end by themselves.
        reshapes: Whether it goes on on two ranks.
        keep_last: How many checkpoints it says to leave; it leaves them all.
        acts: What starts do, by the name that :class:`Asked` gives them; others do it right.
    """

    steps = STEPS
    precision: PrecisionConfig | None = None

    def __init__(
        self,
        folder: Path,
        *,
        stops: Sequence[int] = (),
        reshapes: bool = False,
        keep_last: int | None = None,
        acts: Mapping[str, Act] | None = None,
    ) -> None:
        self.asked: list[Asked] = []
        self.stops = stops
        self.reshapes = reshapes
        self.keep_last = keep_last
        self.is_prepared_before: int | None = None
        """How many starts had been asked for then."""
        self.planned: tuple[PlannedFault, ...] = ()
        self.outside: Any = None
        self.private: Any = None
        self._folder = folder
        self._acts = {"controls": does_controls, **(acts or {})}

    @property
    def names(self) -> list[str]:
        """Of all starts that were asked for, in order."""
        return [asked.name for asked in self.asked]

    def of(self, name: str) -> Asked:
        """The start of that name."""
        (found,) = (asked for asked in self.asked if asked.name == name)
        return found

    def given(
        self, *, plan: tuple[PlannedFault, ...] = (), outside: Any = None, private: Any = None, **_: Any
    ) -> "HandMade":
        """Take what a run of ours is made with."""
        self.planned, self.outside, self.private = plan, outside, private
        return self

    @property
    def title(self) -> str:
        """See ``Subject``."""
        return f"Proof of {STEPS} steps: {'; then '.join(map(str, self.planned))}"

    def plan(self) -> tuple[PlannedFault, ...]:
        """See ``Subject``."""
        return self.planned

    def run(self, name: str, *, is_later: bool = False, saves: bool = True, resume_from: str | None = None) -> Run:
        """See ``Subject``."""
        folder = self._folder if name == "run" else self._folder / "proof" / name
        return Run(
            name=name,
            folder=folder,
            checkpoints=str(folder / "checkpoints"),
            ranks=2 if is_later and self.reshapes else 1,
            is_later=is_later,
            saves=saves,
            resume_from=resume_from,
        )

    def prepare(self) -> None:
        """See ``Subject``."""
        self.is_prepared_before = len(self.asked)

    def start(self, run: Run, leg: Leg) -> TimedOutcome:
        """See ``Subject``."""
        if self.private is not None:
            self.private.begin(run.name, leg.start, begins_as=leg.begins_as)
        if self.outside is not None:
            leg = replace(leg, files=self.outside.begin(run.name, leg.start, run.folder))
        asked = Asked(run, leg)
        self.asked.append(asked)
        assert len(self.asked) < 20, "it goes on for ever"
        outcome = self._acts.get(asked.name, does_it_right)(self, run, leg)
        return TimedOutcome(outcome=outcome, seconds=0.1)

    def has_checkpoint(self, run: Run) -> bool:
        """See ``Subject``."""
        return bool(list_committed(run.checkpoints))

    def leaf_names(self, run: Run) -> Sequence[str]:
        """See ``Subject``."""
        return leaf_names(run.checkpoint(STEPS))

    def code_of(self, component: str | None) -> str:
        """See ``Subject``."""
        return f" It is the code of {component}."

    def starts(self) -> list[Any]:
        """What the run under proof says."""
        return list(read_starts(self._folder))
