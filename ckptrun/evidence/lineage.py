"""What a state was computed with, from the first step on: so that only steps are compared that had to come out alike.

A run may be gone on with under another config (more steps, another clip norm), on other ranks, from an earlier step:
all that is announced when it starts. A step that is done again must repeat itself if everything before it was computed
alike, and need not otherwise. Each checkpoint carries its lineage in what the manifest says of the run, each line of
the ledger the mark of it. Torch-free.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Lineage", "Segment"]


@dataclass(frozen=True, slots=True)
class Segment:
    """Steps in a row that were computed alike."""

    after: int
    """The step after which it begins."""
    conditions: str
    """A fingerprint of all that decides what a step computes, beside the state."""
    note: str = ""
    """What else the first of its steps began with: components left out at a load, another run's weights."""


@dataclass(frozen=True, slots=True)
class Lineage:
    """The segments of one state, in order."""

    segments: tuple[Segment, ...] = ()

    @classmethod
    def of_checkpoint(cls, run: Mapping[str, Any], *, step: int, folder: str) -> "Lineage":
        """Return that of a checkpoint, from what its manifest says of the run; of a foreign one its place will do."""
        history = run.get("history")
        if not isinstance(history, list):
            return cls((Segment(step, "", f"from {folder}"),))
        return cls(tuple(Segment(*part) for part in history))

    def continued(self, step: int, conditions: str, *, note: str = "") -> "Lineage":
        """Return that of a start which goes on after ``step``."""
        if self.segments and self.segments[-1].conditions == conditions and not note:
            return self
        return Lineage((*self.segments, Segment(step, conditions, note)))

    @property
    def mark(self) -> str:
        """Short text that is the same for equal lineages only."""
        return _mark(self.segments)

    def holds(self, line: Mapping[str, Any]) -> bool:
        """Whether a line of the ledger tells how this state came to be; else a later start has gone back before it."""
        step, by = line["step"], line.get("by")
        for number, segment in enumerate(self.segments, start=1):
            until = self.segments[number].after if number < len(self.segments) else step
            if segment.after < step <= until:
                return bool(by == _mark(self.segments[:number]))
        return False

    def as_json(self) -> list[list[Any]]:
        """As it stands in the manifest."""
        return [[part.after, part.conditions, part.note] for part in self.segments]


def _mark(segments: Sequence[Segment]) -> str:
    text = json.dumps([[part.after, part.conditions, part.note] for part in segments])
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
