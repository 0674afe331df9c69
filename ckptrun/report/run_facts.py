"""What lies in the folder of one run or proof, whoever's job it is, and however far it came. Torch-free."""

import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ckptrun.evidence.difference import Difference
from ckptrun.evidence.run_folder import CONFIG, ENVIRONMENT, EVENTS, LOGS, PROOF_MARK, VERDICT
from ckptrun.evidence.verdict import Check, Status, Verdict, read_verdict
from ckptrun.fault import FaultRecord, Fired
from ckptrun.files import read_lines
from ckptrun.report.sound import dicts_of, is_number, is_sound_event, is_sound_verdict, strings_of
from ckptrun.report.state import State
from ckptrun.text import counted

__all__ = ["Log", "RunFacts", "is_run", "json_of", "read_run", "typed"]

_MARKS = (VERDICT, PROOF_MARK, EVENTS, CONFIG)
_TAIL_BYTES, _TAIL_LINES = 3000, 14
_MOST_READ = 4 << 20
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class Log:
    """The end of what a process printed."""

    name: str
    bytes: int
    tail: str


@dataclass(kw_only=True)
class RunFacts:
    """One run or proof, from its files."""

    folder: Path
    kind: str
    """``proof``, ``proof of a command``, ``crash states of a command`` or ``run``."""
    state: State
    verdict: Verdict | None
    """None: there is no ``verdict.json``, or it cannot be read."""
    reason: str
    """Why it is no better; empty where there is nothing to say."""
    more: Mapping[str, Any]
    """What ``verdict.json`` has beside the verdict."""
    mark: Mapping[str, Any]
    """The content of ``proof.json``."""
    environment: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]] = field(repr=False)
    fired: Sequence[Fired]
    unread: Sequence[str]
    """Files that are there and cannot be read, with the reason."""

    @property
    def checks(self) -> Sequence[Check]:
        """In the order in which they were made."""
        return self.verdict.checks if self.verdict is not None else ()

    @property
    def first(self) -> Difference | None:
        """The first difference."""
        return self.verdict.first_difference if self.verdict is not None else None

    @property
    def deciding(self) -> str:
        """The check that has decided; empty where none has."""
        return self.reason.split(":", 1)[0] if any(self.reason.startswith(f"{c.name}:") for c in self.checks) else ""

    @property
    def exit_code(self) -> int | None:
        """None: no file says it."""
        code = self.more.get("exit_code")
        return code if isinstance(code, int) else None

    @property
    def seconds(self) -> float | None:
        """How long the whole proof took; None: no file says it."""
        seconds = self.more.get("seconds")
        return float(seconds) if is_number(seconds) else None

    @property
    def command(self) -> str:
        """What was typed; empty where no file says it."""
        return typed(strings_of(self.mark.get("command")) or strings_of(self.environment.get("command")))

    @property
    def planned(self) -> Sequence[str]:
        """The faults that were planned, a text each."""
        return strings_of(self.more.get("faults"))

    @property
    def crash_groups(self) -> Sequence[Mapping[str, Any]]:
        """What crash states came to, by cause."""
        return [group for group in dicts_of(self.more.get("crash_states")) if is_number(group.get("states"))]

    @cached_property
    def versions(self) -> Mapping[str, str]:
        """Of what it ran on, as far as files say."""
        found = {"ckptrun": self.mark.get("ckptrun")}
        found |= {name: self.environment.get(name) for name in ("python", "torch", "numpy", "cuda", "device")}
        if not found.get("python"):
            found["python"] = _python_of_command(self.folder)
        return {name: str(value) for name, value in found.items() if value}

    def logs(self, most: int) -> tuple[list[Log], int]:
        """Return the ends of what processes printed, the last start first; and how many more files hold something."""
        files = [path for path in (self.folder / LOGS).glob("*.log") if path.stat().st_size]
        files.sort(key=lambda path: (path.name.split(".")[0], path.name), reverse=True)
        struck = {f".rank_{fault.rank:05d}." for fault in self.fired}
        files.sort(key=lambda path: not any(mark in path.name for mark in struck))
        return [_log(path) for path in files[:most]], max(0, len(files) - most)


def is_run(folder: Path) -> bool:
    """Whether ``folder`` looks like what a run or proof leaves."""
    return any((folder / name).is_file() for name in _MARKS)


def typed(words: Sequence[str]) -> str:
    """Return a command line as it would be typed again."""
    if not words:
        return ""
    name = Path(words[0]).name
    program = ["python", "-m", "ckptrun"] if name == "__main__.py" else ["ckptrun"] if name == "ckptrun" else [words[0]]
    return shlex.join([*program, *words[1:]])


def read_run(folder: Path) -> RunFacts:
    """Read what there is; nothing that is missing or cut is an error."""
    unread: list[str] = []
    raw = json_of(folder / VERDICT, unread)
    verdict = _verdict(folder, raw, unread)
    lines = read_lines(folder / EVENTS)
    events = [line for line in lines if is_sound_event(line)]
    if len(events) < len(lines):
        unread.append(f"{counted(len(lines) - len(events), 'line')} of {EVENTS}: this version writes no such")
    state, reason = _state(folder, verdict, raw, events)
    return RunFacts(
        folder=folder,
        kind=_kind(folder, raw),
        state=state,
        verdict=verdict,
        reason=reason,
        more=raw,
        mark=json_of(folder / PROOF_MARK, unread),
        environment=json_of(folder / ENVIRONMENT, unread),
        events=events,
        fired=_fired(folder, unread),
        unread=unread,
    )


def json_of(path: Path, unread: list[str]) -> dict[str, Any]:
    """Return the content of a JSON file; nothing where there is none, or none that can be read, which is noted."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        unread.append(f"{path.name} cannot be read: {type(error).__name__}")
        return {}
    if isinstance(content, dict):
        return content
    unread.append(f"{path.name} holds no JSON object")
    return {}


def _verdict(folder: Path, raw: Mapping[str, Any], unread: list[str]) -> Verdict | None:
    if not raw:
        return None
    try:
        verdict = read_verdict(folder)
        if is_sound_verdict(verdict):
            return verdict
        kind = "of other types"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        kind = type(error).__name__
    unread.append(f"{VERDICT} is none that this version writes: {kind}")
    return None


def _fired(folder: Path, unread: list[str]) -> list[Fired]:
    try:
        return FaultRecord(folder).fired()
    except (OSError, ValueError, TypeError) as error:
        unread.append(f"faults/ cannot be read: {type(error).__name__}")
        return []


def _kind(folder: Path, raw: Mapping[str, Any]) -> str:
    if "crash_states" in raw or (folder / "crash").is_dir():
        return "crash states of a command"
    if (folder / "probe").is_dir():
        return "proof of a command"
    return "proof" if (folder / PROOF_MARK).is_file() else "run"


def _state(
    folder: Path, verdict: Verdict | None, raw: Mapping[str, Any], events: Sequence[Mapping[str, Any]]
) -> tuple[State, str]:
    """What it came to, and why."""
    failures = [str(event.get("text", "")) for event in events if event["event"] == "failure"]
    if verdict is not None:
        is_failed = raw.get("exit_code") == 1 and verdict.status is Status.not_verified
        return (State.failed if is_failed else State(verdict.status.value)), verdict.reason
    if (folder / PROOF_MARK).is_file():
        last = f" The last that a rank said: {failures[-1]}" if failures else ""
        return State.unfinished, f"the proof did not come to a verdict: it was ended, or runs still.{last}"
    last_kind = next((event["event"] for event in reversed(events) if event["event"] != "check"), None)
    match last_kind:
        case "end":
            return State.done, ""
        case "failure":
            return State.failed, failures[-1]
        case "preempted":
            return State.unfinished, "it was told to end, and can be resumed by the same command"
        case _:
            return State.unfinished, "it did not come to its end: it was ended, or runs still"


def _python_of_command(folder: Path) -> str | None:
    """The interpreter of somebody's job, as its first process has said."""
    for path in sorted((folder / "probe").glob("start_*/*.jsonl"))[:1]:
        with path.open("rb") as file:
            head = file.readline(_MOST_READ)
        try:
            event = json.loads(head)
        except ValueError:
            return None
        return str(event["python"]) if isinstance(event, dict) and event.get("python") else None
    return None


def _log(path: Path) -> Log:
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL_BYTES), os.SEEK_SET)
        text = file.read(_TAIL_BYTES).decode(errors="replace")
    return Log(path.name, size, "\n".join(_COLOURS.sub("", text).splitlines()[-_TAIL_LINES:]))
