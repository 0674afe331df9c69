"""What the starts of a run say of themselves, read from ``events.jsonl``. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, assert_never

from ckptrun.evidence.run_folder import EVENTS
from ckptrun.evidence.verdict import Check, Status
from ckptrun.files import read_lines

__all__ = ["EventKind", "Failure", "Start", "read_failures", "read_starts"]


class EventKind(StrEnum):
    """What a line of ``events.jsonl`` tells of."""

    launch = "launch"
    """Ranks have been started; all lines up to the next are of that start."""
    start = "start"
    """They have loaded what they go on from."""
    skipped = "skipped"
    """A checkpoint was passed over: it is damaged."""
    step = "step"
    commit = "commit"
    """A checkpoint is visible."""
    check = "check"
    """A check of a proof was made by the ranks."""
    control = "control"
    """A component was left out, to see that it is missed."""
    stopped = "stopped"
    """The start has ended after the step that was planned."""
    preempted = "preempted"
    """It has ended because it was told to."""
    end = "end"
    """All steps are done."""
    failure = "failure"
    """A rank says what brings it down."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a start ended before its time, in the words of the rank that spoke."""

    rank: int
    text: str
    leaves: Sequence[str] = ()
    component: str | None = None
    """The component that was being loaded, or that the leaves are of."""
    is_secondary: bool = False
    """Whether the rank has only seen that another one was gone."""
    check: str | None = None
    """The check of a proof that has found a difference by that; None: the failure is the job's own."""


@dataclass(slots=True, kw_only=True)
class Start:
    """One start of a run."""

    index: int
    step: int = 0
    """What it went on from; 0: anew."""
    resumed_from: str | None = None
    damaged: dict[str, str] = field(default_factory=dict)
    """Checkpoints that it passed over -> why."""
    world_size: int = 0
    checks: list[Check] = field(default_factory=list)
    committed: list[str] = field(default_factory=list)
    """Folders of checkpoints that were committed."""
    controls: list[Mapping[str, Any]] = field(default_factory=list)
    hash_seed: str | None = None
    """That of its interpreters; None: they drew one."""
    fresh: bool = False
    """Whether they were others than those of the reference."""
    ended: EventKind | None = None
    """``end``, ``stopped`` or ``preempted``; None: it did not end by itself."""
    failure: Failure | None = None

    @property
    def is_complete(self) -> bool:
        """Whether it says that all steps are done: it ended by itself, and not because a comparison told it to."""
        return self.ended == EventKind.end and all(check.status is not Status.different for check in self.checks)


def read_starts(run_dir: Path) -> list[Start]:
    """All starts of a run, in order."""
    starts: list[Start] = []
    for event in read_lines(run_dir / EVENTS):
        kind = EventKind.__members__.get(event["event"])
        if kind is None:
            # A later version has gone on with the run.
            continue
        if kind is EventKind.launch:
            seed, fresh = event.get("hash_seed"), event.get("fresh", False)
            starts.append(Start(index=event["start"], hash_seed=seed, fresh=fresh))
        elif kind is EventKind.failure and not starts:
            # A rank did not come as far as to say that it was there.
            starts.append(Start(index=0, failure=_failure(event)))
        elif starts:
            _add(starts[-1], kind, {name: value for name, value in event.items() if name != "event"})
    return starts


def read_failures(run_dir: Path) -> list[Failure]:
    """Everything that ranks of a run have said before they ended, in order."""
    return [_failure(event) for event in read_lines(run_dir / EVENTS) if event["event"] == EventKind.failure]


def _failure(facts: Mapping[str, Any]) -> Failure:
    return Failure(
        rank=facts["rank"],
        text=facts["text"],
        leaves=facts["leaves"],
        component=facts["component"],
        is_secondary=facts.get("secondary", False),
        check=facts.get("check"),
    )


def _add(start: Start, kind: EventKind, facts: Mapping[str, Any]) -> None:
    match kind:
        case EventKind.start:
            start.step, start.resumed_from = facts["step"], facts["resumed_from"]
            start.world_size = facts["world_size"]
        case EventKind.failure:
            start.failure = start.failure or _failure(facts)
        case EventKind.check:
            start.checks.append(Check.from_json(facts))
        case EventKind.commit:
            start.committed.append(facts["folder"])
        case EventKind.skipped:
            start.damaged[facts["folder"]] = facts["reason"]
        case EventKind.control:
            start.controls.append(facts)
        case EventKind.end | EventKind.stopped | EventKind.preempted:
            start.ended = kind
        case EventKind.launch | EventKind.step:
            # The one begins a start, the other is in the ledger.
            return
        case _:
            assert_never(kind)
