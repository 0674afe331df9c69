"""What a user may have meant by a name that does not exist."""

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher

__all__ = ["did_you_mean", "no_such_choice"]

_SHOWN = 3
_NEAR = 0.6
# A key without its section, or in another one, is meant more surely than one that only looks alike.
_SAME_KEY = 0.9
# Then its own section decides: train.step is train.steps, not fault.step.
_AS_GOOD = 0.02


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return ``did you mean train.steps?`` for the names nearest to ``name``; empty when none is near."""
    scores = {other: _likeness(name, other) for other in names if other != name}
    best = max(scores.values(), default=0.0)
    if best < _NEAR:
        return ""
    section = name.rpartition(".")[0]
    here = {other: score for other, score in scores.items() if other.rpartition(".")[0] == section}
    if max(here.values(), default=0.0) > best - _AS_GOOD:
        scores, best = here, max(here.values())
    found = [other for other, score in scores.items() if score == best][:_SHOWN]
    *others, last = found
    return f"did you mean {', '.join(others)} or {last}?" if others else f"did you mean {last}?"


def no_such_choice(group: str, choice: str, choices: Sequence[str]) -> str:
    """What to say when ``group`` has no ``choice``."""
    near = did_you_mean(choice, choices)
    return f"{group}={choice}: there is no such choice{'; ' + near if near else '.'} Choices: {', '.join(choices)}."


def _likeness(name: str, other: str) -> float:
    """From 0 to 1; of names with dots, section and key are compared one by one."""
    section, _, key = name.rpartition(".")
    other_section, _, other_key = other.rpartition(".")
    if section == other_section:
        return _ratio(key, other_key)
    if key == other_key:
        return _SAME_KEY
    if not section or not other_section:
        return _SAME_KEY * _ratio(key, other_key) if other_section else 0.0
    return min(_ratio(section, other_section), _ratio(key, other_key))


def _ratio(one: str, other: str) -> float:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio()
