"""What a person sees of a proof: a line per leg while it runs, the checks, and the outcome in ten lines. Torch-free."""

import re
import textwrap
from collections.abc import Sequence

from ckptrun.console import aligned, has_colour, say
from ckptrun.evidence.difference import Difference
from ckptrun.evidence.starts import EventKind, Start
from ckptrun.evidence.verdict import Check, Status, Verdict
from ckptrun.exit_codes import ExitCode
from ckptrun.fault import Fired
from ckptrun.proof.subject import Subject, TimedOutcome

__all__ = ["ProofView", "text_of"]

# A reason that is longer than this holds somebody's stack.
_LONGEST = 800
_WIDTH = 80
_NAME_WIDTH, _TEXT_WIDTH = 17, 51
# green, red, yellow
_COLOURS = {Status.equal: 32, Status.different: 31, Status.not_verified: 33}
_DIGEST = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")


class ProofView:
    """Prints.

    Args:
        subject: What is proved.
    """

    def __init__(self, subject: Subject) -> None:
        self._subject = subject

    def begin(self) -> None:
        """Say what is going to happen."""
        say("\n".join(textwrap.wrap(self._subject.title, _WIDTH, subsequent_indent="  ", break_on_hyphens=False)))

    def leg(self, name: str, ended: TimedOutcome) -> None:
        """A leg that is not the run under proof has ended."""
        text = {
            "reference": f"{self._subject.steps} steps that nothing happens to",
            "resumed_reference": "resumed on the other mesh, and not interrupted again",
            "controls": "resumed with a component left out",
            # Killed as planned.
            "run_again": "killed and resumed again, every operation watched",
        }.get(name, "the same again: does it repeat itself?")
        failed = "" if ended.outcome.exit_code == ExitCode.done or name == "run_again" else " (failed)"
        say(leg_line(name.replace("_", " "), text + failed, ended.seconds))

    def started(self, start: Start, struck: Sequence[Fired], ended: TimedOutcome) -> None:
        """A start of the run under proof has ended."""
        began = "from the beginning" if start.resumed_from is None else f"resumed at step {start.step}"
        came_to = {
            EventKind.end: "complete",
            EventKind.stopped: "stopped as planned",
            EventKind.preempted: "saved and ended",
            None: "failed",
        }
        how = came_to[start.ended]
        if struck:
            how = f"{struck[0]}{', saved and ended' if start.ended == EventKind.preempted else ''}"
        skipped = f", {len(start.damaged)} damaged skipped" if start.damaged else ""
        name = "run" if start.index == 0 else f"  start {start.index + 1}"
        say(leg_line(name, f"{began}{skipped}; {how}", ended.seconds))

    def finish(self, verdict: Verdict) -> None:
        """Say what came out."""
        say("")
        say(coloured(text_of(verdict), verdict.status) if has_colour() else text_of(verdict))


def leg_line(name: str, text: str, seconds: float) -> str:
    """Return what a leg came to, in lines of 80 characters: name, text, seconds; long texts go on below."""
    first, *more = textwrap.wrap(text, _TEXT_WIDTH, break_on_hyphens=False) or [""]
    lines = [f"  {name:<{_NAME_WIDTH}} {first:<{_TEXT_WIDTH}} {seconds:>6.1f} s"]
    return "\n".join([*lines, *(f"{'':{_NAME_WIDTH + 3}}{line}" for line in more)])


def coloured(text: str, status: Status) -> str:
    """Return ``text`` with the first word that says what came out in the colour of it, for a terminal."""
    word = status.upper()
    return text.replace(word, f"\x1b[1;{_COLOURS[status]}m{word}\x1b[0m", 1)


def text_of(verdict: Verdict) -> str:
    """What a person wants to know of a verdict: every check of one that is equal, else what differs, in ten lines."""
    rows = _equal_rows(verdict) if verdict.status is Status.equal else _other_rows(verdict)
    return aligned({**rows, **_uncovered_rows(verdict), "details": f"{verdict.path}/verdict.json"}, width=_WIDTH)


def _uncovered_rows(verdict: Verdict) -> dict[str, str]:
    """What the verdict says nothing of."""
    said = {"not exercised": verdict.not_exercised, "not covered": verdict.not_covered}
    return {name: "; ".join(sentences) for name, sentences in said.items() if sentences}


def _equal_rows(verdict: Verdict) -> dict[str, str]:
    rows = {"verdict": "EQUAL: killed and resumed, the run came out bit for bit as if nothing had happened"}
    return rows | {check.name: _line(check) for check in verdict.checks}


def _line(check: Check) -> str:
    status = "" if check.status is Status.equal else f"{check.status.value}: "
    return _cut(f"{status}{check.detail}")


def _other_rows(verdict: Verdict) -> dict[str, str]:
    blame = f" (blame: {verdict.blame})" if verdict.blame else ""
    rows = {"verdict": f"{verdict.status.upper()}{blame}", "reason": _cut(verdict.reason)}
    if verdict.advice:
        rows["look at"] = verdict.advice
    if verdict.first_difference is not None:
        rows |= _difference_rows(verdict.first_difference)
    for status in (Status.different, Status.not_verified, Status.equal):
        names = [check.name for check in verdict.checks if check.status is status]
        if names:
            rows[status.value] = ", ".join(names)
    return rows


def _difference_rows(first: Difference) -> dict[str, str]:
    index = "" if first.index is None else str(list(first.index))
    where = [f"step {first.step}", f"rank {first.rank}", f"{first.leaf}{index}"]
    rows = {"first": ", ".join(text for text in where if not text.endswith("None"))}
    # Digests tell a person only that there is a difference.
    sides = {"expected": first.expected, "got": first.got}
    is_told = not all(_DIGEST.fullmatch(str(value)) for value in sides.values())
    for side, value in sides.items() if is_told else ():
        bits = first.details.get(f"{side}_bits")
        if value is not None or bits:
            rows[side] = _cut(f"{value}" + (f"  bits {bits}" if bits else ""))
    if first.ulp is not None:
        rows["apart"] = f"{first.ulp} ULP"
    return rows


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."
