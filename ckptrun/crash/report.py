"""What crash states came to, put together by cause: for people, for ``verdict.json``, and for a trainer's tracker.

Torch-free.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptrun.crash.files import Tree
from ckptrun.crash.resumes import Came, Outcome
from ckptrun.crash.states import CrashState, Ending
from ckptrun.text import counted

__all__ = ["Group", "Judged", "cause_of", "groups_of", "lines_of", "write_repro"]

_SHOWN_KINDS = 6
_LONGEST = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """A state and what it comes to."""

    state: CrashState
    outcome: Outcome
    argv: Sequence[str]
    """What it is resumed by."""


@dataclass(slots=True)
class Group:
    """States that come to the same, by the same cause."""

    outcome: Outcome
    judged: list[Judged] = field(default_factory=list)

    @property
    def kinds(self) -> dict[tuple[str, str], list[Ending]]:
        """What leaves such a state, and the trainer's line that did it -> how often."""
        found: dict[tuple[str, str], list[Ending]] = {}
        for one in self.judged:
            for ending in one.state.endings:
                found.setdefault((_kind(ending), _line(ending)), []).append(ending)
        return dict(sorted(found.items(), key=lambda item: -len(item[1])))

    def as_json(self) -> dict[str, Any]:
        """For ``verdict.json``."""
        return {
            "came_to": self.outcome.came,
            "text": self.outcome.text,
            "component": self.outcome.component,
            "states": len(self.judged),
            "left_by": [
                {"what": what, "where": where, "times": len(endings), "example": endings[0].text}
                for (what, where), endings in self.kinds.items()
            ],
        }


def cause_of(outcome: Outcome) -> str:
    """What outcomes of one cause have in common; empty for those that are equal."""
    return "" if outcome.came is Came.equal else _without_numbers(outcome.text)


def groups_of(judged: Sequence[Judged]) -> list[Group]:
    """Put states together; the worst first, and of those the most frequent."""
    found: dict[tuple[str, str], Group] = {}
    for one in judged:
        found.setdefault((one.outcome.came, cause_of(one.outcome)), Group(one.outcome)).judged.append(one)
    order = [Came.different, Came.lost_work, Came.failed, Came.equal]
    return sorted(found.values(), key=lambda group: (order.index(group.outcome.came), -len(group.judged)))


def lines_of(group: Group) -> list[str]:
    """What a person reads of a group that is not equal: the cause, and a line per kind of state."""
    kinds = list(group.kinds.items())
    lines = [f"{group.outcome.came}: {counted(len(group.judged), 'state')}: {_cut(group.outcome.text)}"]
    for (what, where), endings in kinds[:_SHOWN_KINDS]:
        lines.append(f"  {what}{f' ({len(endings)} times)' if len(endings) > 1 else ''}")
        lines += [f"    {where}"] if where else []
    if len(kinds) > _SHOWN_KINDS:
        lines.append(f"  and {len(kinds) - _SHOWN_KINDS} more, in verdict.json")
    return lines


def _kind(ending: Ending) -> str:
    """An ending without its numbers: what it has in common with others of its kind."""
    by = "" if ending.by is None else f" {ending.by.call} of {_without_numbers(ending.by.path)}"
    text = _without_numbers(ending.text.split("; after")[0])
    return f"{ending.how}:{by}" if ending.how in ("killed", "torn") else f"{ending.how}: {text}"


def _line(ending: Ending) -> str:
    return "" if ending.by is None or not ending.by.where else ending.by.where[0]


def _without_numbers(text: str) -> str:
    text = re.sub(r"\.tmp\w+", ".tmp#", text)
    text = re.sub(r"\btmp[a-z0-9_]{8}\b", "tmp#", text)
    return re.sub(r"\d+", "#", text)


def _cut(text: str) -> str:
    first = text.strip().splitlines()[0] if text.strip() else ""
    return first if len(first) <= _LONGEST else f"{first[:_LONGEST]} ..."


def write_repro(
    folder: Path, group: Group, *, output: Path, cwd: Path, environment: Mapping[str, str], job: str
) -> None:
    """Write what shows a group again: the state, a command that resumes from it, and a text for a tracker.

    Args:
        folder: Made.
        group: Of which the first state is taken.
        output: The folder that the job writes to.
        cwd: Where the job runs.
        environment: What is added to its environment.
        job: The command that was recorded.
    """
    one = group.judged[0]
    state: Tree = one.state.tree
    state.build(folder / "state")
    place = shlex.quote(str(output))
    variables = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    script = folder / "reproduce.sh"
    script.write_text(
        "#!/bin/sh\n"
        "# Puts the files there that a crash has left, and starts the job as after that crash.\n"
        'cd "$(dirname "$0")" || exit\n'
        f"rm -rf {place} && mkdir -p {place} && cp -a state/. {place} || exit\n"
        f"cd {shlex.quote(str(cwd))} || exit\n"
        f"{variables}exec {shlex.join(one.argv)}\n"
    )
    script.chmod(0o755)
    ending = one.state.endings[0]
    where = ending.by.where if ending.by is not None else ()
    files = "\n".join(
        f"    {path}{'/' if entry.content is None else f'  {entry.content.size} bytes'}"
        for path, entry in sorted(state.entries.items())
    )
    (folder / "report.md").write_text(
        f"# {_title(group)}\n\n"
        f"A job that is {_HOW[ending.how]} {ending.text}, cannot be resumed as it should:\n\n"
        f"    {_cut(group.outcome.text)}\n\n"
        + (f"The call is made at\n\n{''.join(f'    {line}{chr(10)}' for line in where)}\n" if where else "")
        + f"## To reproduce\n\nThe job was\n\n    {job}\n\nThis lies in its folder after the crash:\n\n{files}\n\n"
        f"and is resumed by\n\n    {shlex.join(one.argv)}\n\n`reproduce.sh` puts `state/` there and does that.\n\n"
        f"{counted(len(group.judged), 'state')} that a crash within one save can leave come to this.\n"
    )


_HOW = {
    "killed": "killed",
    "torn": "killed",
    "one rank killed": "killed on one rank,",
    "power cut": "ended by a power cut:",
}


def _title(group: Group) -> str:
    match group.outcome.came:
        case Came.failed:
            return "A crash within a save leaves files that no resume can load"
        case Came.lost_work:
            return "After a crash within a save a complete checkpoint is not resumed from"
        case Came.different:
            return "After a crash within a save a resume goes on with other values, silently"
        case Came.equal:
            return "After a crash within a save a resume is exact"
