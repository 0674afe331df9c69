"""What became of one cell of a sweep, and the exit code of all together. Reads files only. Torch-free."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Self, assert_never

from ckptrun.evidence.run_folder import EVENTS, VERDICT
from ckptrun.evidence.starts import EventKind
from ckptrun.exit_codes import ExitCode
from ckptrun.files import read_lines

__all__ = ["Cell", "CellVerdict", "LeftByStart", "SaveFigures", "cell_verdict", "save_figures", "sweep_exit_code"]


class CellVerdict(StrEnum):
    """What a cell came to. The first three are those of ``verdict.json``."""

    equal = "equal"
    different = "different"
    not_verified = "not_verified"
    done = "done"
    """The run ended well, and nothing was asked to be proved (``proof.reload=none``, ``checkpoint=none``)."""
    failed = "failed"
    """The run ended with an error, or not at all."""
    skipped = "skipped"
    """The combination makes no sense; nothing was started."""


_OF_EXIT_CODE = {
    ExitCode.done: CellVerdict.done,
    ExitCode.different: CellVerdict.different,
    ExitCode.not_verified: CellVerdict.not_verified,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveFigures:
    """What saving cost on rank 0, over all checkpoints that were committed in the folder of the cell."""

    blocked_seconds: float
    """How long training waited."""
    background_seconds: float
    """From the end of staging to the commit; 0 for synchronous saves."""
    bytes: int
    """Bytes of the tensors that were saved, replicas included."""

    @property
    def bytes_per_second(self) -> float | None:
        """Bytes by the whole time from the request to the commit."""
        seconds = self.blocked_seconds + self.background_seconds
        return round(self.bytes / seconds, 1) if seconds else None

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`as_json` has made."""
        return cls(**{name: content[name] for name in ("blocked_seconds", "background_seconds", "bytes")})

    def as_json(self) -> dict[str, Any]:
        """The content of ``save`` in ``summary.json``."""
        return {
            "blocked_seconds": round(self.blocked_seconds, 6),
            "background_seconds": round(self.background_seconds, 6),
            "bytes": self.bytes,
            "bytes_per_second": self.bytes_per_second,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One combination of a sweep, and what became of it."""

    name: str
    overrides: tuple[str, ...]
    verdict: CellVerdict
    exit_code: int | None
    """None: it did not end."""
    reason: str = ""
    seconds: float = 0.0
    save: SaveFigures | None = None
    """None: nothing was committed."""
    identity: str = ""
    """Of what decides what comes out; empty where it was not run."""

    @property
    def is_settled(self) -> bool:
        """Whether it has come to its end, whatever that was."""
        return self.verdict not in (CellVerdict.failed, CellVerdict.skipped)

    @property
    def is_good(self) -> bool:
        """Whether nobody has to look at it."""
        return self.verdict in (CellVerdict.equal, CellVerdict.done, CellVerdict.skipped)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`as_json` has made.

        Raises:
            KeyError, TypeError, ValueError: Something else has.
        """
        save = content["save"]
        return cls(
            name=content["path"],
            overrides=tuple(content["overrides"]),
            verdict=CellVerdict(content["verdict"]),
            exit_code=content["exit_code"],
            reason=content["reason"],
            seconds=content["seconds"],
            save=None if save is None else SaveFigures.from_json(save),
            identity=content.get("identity", ""),
        )

    def as_json(self) -> dict[str, Any]:
        """One entry of ``cells`` in ``summary.json``; ``path`` is seen from the folder that this file lies in."""
        return {
            "overrides": list(self.overrides),
            "verdict": self.verdict,
            "exit_code": self.exit_code,
            "reason": self.reason,
            "seconds": round(self.seconds, 3),
            "save": None if self.save is None else self.save.as_json(),
            "path": None if self.verdict is CellVerdict.skipped else self.name,
            "identity": self.identity,
        }


class LeftByStart:
    """Tells what a start leaves in its folder from what earlier starts have left. Make it before the start.

    Args:
        folder: The folder of the cell; it need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._verdict, self._events = folder / VERDICT, folder / EVENTS
        self._stamp_before, self._lines_before = self._stamp(), len(read_lines(self._events))

    def verdict(self) -> Mapping[str, Any] | None:
        """The content of ``verdict.json``; None when this start has written none."""
        if self._stamp() in (None, self._stamp_before):
            return None
        content: Mapping[str, Any] = json.loads(self._verdict.read_text())
        return content

    def failure(self) -> str | None:
        """What brought this start down, as far as a rank could say."""
        texts = [event["text"] for event in self._new_events() if event["event"] == EventKind.failure]
        return texts[-1] if texts else None

    def was_preempted(self) -> bool:
        """Whether this start has ended because its ranks were told to."""
        return any(event["event"] == EventKind.preempted for event in self._new_events())

    def _new_events(self) -> list[dict[str, Any]]:
        return read_lines(self._events)[self._lines_before :]

    def _stamp(self) -> tuple[int, int] | None:
        # The file is replaced, never written to.
        try:
            status = self._verdict.stat()
        except FileNotFoundError:
            return None
        return status.st_ino, status.st_mtime_ns


def cell_verdict(exit_code: int, left: LeftByStart) -> tuple[CellVerdict, str]:
    """What a run or proof that has ended with ``exit_code`` came to, and why."""
    found = left.verdict() or {}
    reason = found.get("reason") or ""
    if exit_code not in _OF_EXIT_CODE:
        what = reason or left.failure() or "it stands in the output of the sweep"
        return CellVerdict.failed, f"exit code {exit_code}: {what}"
    if not found:
        return _OF_EXIT_CODE[ExitCode(exit_code)], ""
    blame = f" (blame: {found['blame']})" if found.get("blame") else ""
    return CellVerdict(found["verdict"]), f"{reason}{blame}"


def save_figures(folder: Path) -> SaveFigures | None:
    """Add up the commits that the ``events.jsonl`` of a run tells of; None when there is none, or none was measured."""
    events = [event for event in read_lines(folder / EVENTS) if event["event"] == EventKind.commit]
    # What a save of somebody else's job costs is not known.
    commits = [event for event in events if "blocked_seconds" in event]
    if not commits:
        return None
    return SaveFigures(
        blocked_seconds=sum(commit["blocked_seconds"] for commit in commits),
        background_seconds=sum(commit["background_seconds"] for commit in commits),
        bytes=sum(commit["bytes"] for commit in commits),
    )


def sweep_exit_code(verdicts: Iterable[CellVerdict]) -> ExitCode:
    """The exit code of a sweep whose cells came to ``verdicts``: the worst of them.

    Different, failed, not verified, in this order; 2 when nothing was run at all; else 0.
    """
    return min(map(_exit_code_of, verdicts), key=_WORST_FIRST.index, default=ExitCode.config)


# The last: nothing was run at all.
_WORST_FIRST = (ExitCode.different, ExitCode.failed, ExitCode.not_verified, ExitCode.done, ExitCode.config)


def _exit_code_of(verdict: CellVerdict) -> ExitCode:
    match verdict:
        case CellVerdict.equal | CellVerdict.done:
            return ExitCode.done
        case CellVerdict.different:
            return ExitCode.different
        case CellVerdict.not_verified:
            return ExitCode.not_verified
        case CellVerdict.failed:
            return ExitCode.failed
        case CellVerdict.skipped:
            return ExitCode.config
        case _:
            assert_never(verdict)
