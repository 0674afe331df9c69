"""What became of a cell, as a report shows it: never by colour alone. Torch-free."""

from collections.abc import Iterable
from enum import StrEnum

from ckptrun.text import counted

__all__ = ["State", "sentence_of"]


class State(StrEnum):
    """The verdicts of ``summary.json`` and ``verdict.json``, and one that none says: it has not ended. Worst first."""

    different = "different"
    failed = "failed"
    unfinished = "unfinished"
    not_verified = "not_verified"
    skipped = "skipped"
    done = "done"
    equal = "equal"

    @property
    def glyph(self) -> str:
        """A sign of its own, which needs no colour."""
        return _GLYPHS[self]

    @property
    def words(self) -> str:
        """For people."""
        return "not finished" if self is State.unfinished else self.value.replace("_", " ")

    @property
    def is_good(self) -> bool:
        """Whether nobody has to look at it."""
        return self in (State.equal, State.done)


_GLYPHS = {
    State.different: "✗",
    State.failed: "!",
    State.unfinished: "…",
    State.not_verified: "?",
    State.skipped: "-",
    State.done: "○",
    State.equal: "✓",
}


def sentence_of(states: Iterable[State], *, worst: str) -> str:
    """Return what became of all cells, in one sentence.

    Args:
        states: Of each cell.
        worst: What is the matter with those that are worst off; empty where nothing is.
    """
    found = list(states)
    if not found:
        return "No cell was run."
    numbers = {state: found.count(state) for state in State if state in found}
    if len(numbers) == 1:
        only = next(iter(numbers))
        text = f"The only cell is {only.words}" if len(found) == 1 else f"All {len(found):,} cells are {only.words}"
        return f"{text}: {worst}." if worst else f"{text}."
    best = max(numbers, key=list(State).index)
    others = [f"{number:,} {'is' if number == 1 else 'are'} {s.words}" for s, number in numbers.items() if s != best]
    # What is the matter stands beside the number that it explains, as the last thing that is said.
    others = [*others[1:], others[0]]
    text = f"{numbers[best]:,} of {counted(len(found), 'cell')} {'is' if numbers[best] == 1 else 'are'} {best.words}"
    return f"{text}; {', '.join(others)}{f': {worst}' if worst else ''}."
