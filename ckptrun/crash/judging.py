"""All states of a save, judged: each resume that must be made, and none twice. Torch-free."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ckptrun.console import say
from ckptrun.crash.report import Judged, cause_of
from ckptrun.crash.resumes import Came, Outcome, Resumed, Resumes, outcome_of
from ckptrun.crash.states import CrashState
from ckptrun.crash.warm import Program, WarmServers
from ckptrun.foreign.judge import StartFacts
from ckptrun.proof.prove import Interrupted
from ckptrun.proof.view import leg_line
from ckptrun.text import counted

__all__ = ["Judging", "chosen_of"]

# With fewer states servers cost more than they save.
_LEAST_STATES = 4
_NEWS_SECONDS = 30.0


def chosen_of(states: Sequence[CrashState], whole: str, most: int | None) -> list[CrashState]:
    """Return what is judged, in order: at most so many, spread over all.

    The first is that in which the save is over (``whole`` is its key): what differs there is no matter of crashes.
    """
    first = [state for state in states if state.tree.key == whole]
    others = [state for state in states if state.tree.key != whole]
    left = len(others) if most is None else max(0, most - len(first))
    if left >= len(others):
        return [*first, *others]
    return [*first, *(others[(2 * i + 1) * len(others) // (2 * left)] for i in range(left))]


class Judging:
    """Judges states, in order.

    A resume from processes that have imported everything (see ``warm``) takes a fraction of the time. It must come to
    what an ordinary one comes to from the whole state, and for each cause that it finds the first state is resumed
    from as ever, too: where the two do not agree, all is done as ever.

    Args:
        resumes: By which the job is resumed.
        states: The first is that in which the save is over.
        whole: Its key.
        programs: What the job's processes are started as.
        folder: Of the crash proof.
    """

    def __init__(
        self, resumes: Resumes, states: Sequence[CrashState], whole: str, *, programs: Sequence[Program], folder: Path
    ) -> None:
        self._resumes = resumes
        self._states = states
        self._whole = whole
        self._programs = programs
        self._folder = folder
        self._done: list[Resumed] = []
        self._confirmed: set[tuple[Came, str]] = set()
        self._began = self._told = time.monotonic()
        self.resumed = 0
        """How many resumes were made, those that confirm others included."""
        self.facts: list[StartFacts] = []
        """What is known of each."""

    @property
    def distinct(self) -> int:
        """How many states were resumed from by themselves; the others look the same to the job as one of them."""
        return len(self._done)

    def run(self) -> list[Judged]:
        """Judge all; only the first where that is not equal already."""
        first = self._states[0]
        judged = [self._judged(first, None)]
        if first.tree.key == self._whole and judged[0].outcome.came is not Came.equal:
            return judged
        if len(self._states) < _LEAST_STATES:
            return [*judged, *(self._judged(state, None) for state in self._states[1:])]
        with WarmServers(
            self._programs, self._folder / "warm", output=self._resumes.output, cwd=self._resumes.cwd
        ) as servers:
            warm = servers if servers.is_ready and self._agrees(first, judged[0].outcome, servers) else None
            for state in self._states[1:]:
                one = self._judged(state, warm)
                confirmed = one if warm is None else self._confirmed_one(one)
                if confirmed is None:
                    say("  an ordinary start does not come to that: all is done again by ordinary starts")
                    warm, self._done = None, []
                    judged = [self._judged(earlier, None) for earlier in self._states[: len(judged)]]
                    confirmed = self._judged(state, None)
                judged.append(confirmed)
                self._tell(len(judged))
        return judged

    def _tell(self, judged: int) -> None:
        """Say now and then how far it is."""
        now = time.monotonic()
        if now - self._told > _NEWS_SECONDS:
            self._told = now
            text = f"{judged} of {len(self._states)} states, by {counted(self.resumed, 'resume')}"
            say(leg_line("  judged so far", text, now - self._began))

    def _agrees(self, state: CrashState, outcome: Outcome, warm: WarmServers) -> bool:
        """Whether a state comes to the same from warm processes."""
        self._done = []
        other = self._judged(state, warm).outcome
        return (other.came, cause_of(other)) == (outcome.came, cause_of(outcome))

    def _confirmed_one(self, one: Judged) -> Judged | None:
        """Return it where a cause that was not met before is there in a start as ever, too; None: it is not.

        Why a start fails may be told otherwise by another rank that came first: as the ordinary one tells it.
        """
        key = (one.outcome.came, cause_of(one.outcome))
        if one.outcome.came is Came.equal or key in self._confirmed:
            return one
        again = self._resume(one.state, None, is_watched=False)
        other = outcome_of(again, self._resumes.newest(one.state.tree))
        other_key = (other.came, cause_of(other))
        if other_key != key and not other.came is one.outcome.came is Came.failed:
            return None
        self._confirmed |= {key, other_key}
        return replace(one, outcome=other)

    def _judged(self, state: CrashState, warm: WarmServers | None) -> Judged:
        """A state and what it comes to, by a resume of its own or by one that has seen the same."""
        newest = self._resumes.newest(state.tree)
        argv = self._resumes.starter.argv(newest)
        whole = self._resumes.whole
        like = (r for r in self._done if r.argv == argv and r.looked.seen_in(state.tree, whole) == r.seen)
        resumed = next(like, None)
        if resumed is None:
            began = time.monotonic()
            resumed = self._resume(state, warm)
            self._done.append(resumed)
            outcome = outcome_of(resumed, newest)
            if outcome.came is not Came.equal:
                say(leg_line(f"  {outcome.came}", str(state.endings[0]), time.monotonic() - began))
        return Judged(state=state, outcome=outcome_of(resumed, newest), argv=argv)

    def _resume(self, state: CrashState, warm: WarmServers | None, *, is_watched: bool = True) -> Resumed:
        resumed = self._resumes.resume(state.tree, warm=warm, is_watched=is_watched)
        self.resumed += 1
        heard = resumed.heard
        self.facts.append(
            StartFacts(aligned=resumed.aligned, newest_before=None, steps=heard.steps, errors=heard.errors)
        )
        if resumed.end.interrupted_by is not None:
            raise Interrupted(resumed.end.interrupted_by)
        return resumed
