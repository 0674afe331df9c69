"""Whether what a file holds is of the types that are written there: another version, or an editor, may have made it.

Pure. Torch-free.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

from ckptrun.evidence.difference import Difference
from ckptrun.evidence.verdict import Check, Verdict

__all__ = ["dicts_of", "is_number", "is_sound_cell", "is_sound_event", "is_sound_verdict", "strings_of"]

_LARGEST = 2**63
_NUMBERS = ("start", "step", "rank", "world_size", "blocked_seconds", "background_seconds", "bytes", "seconds")
_SAVE = ("blocked_seconds", "background_seconds", "bytes", "bytes_per_second")


def is_number(value: Any) -> TypeGuard[float]:
    """Whether it is one that can be counted with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST < value < _LARGEST


def strings_of(value: Any) -> list[str]:
    """Return a list of texts; of anything else nothing."""
    return [str(one) for one in value] if isinstance(value, list) else []


def dicts_of(value: Any) -> list[Mapping[str, Any]]:
    """Return the objects in a list; of anything else nothing."""
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def is_sound_event(event: Any) -> bool:
    """Whether a line of ``events.jsonl`` can be counted with; steps and starts are whole numbers."""
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return False
    is_whole = all(event.get(name) is None or isinstance(event[name], int) for name in ("start", "step"))
    return is_whole and all(event.get(name) is None or is_number(event[name]) for name in _NUMBERS)


def is_sound_cell(entry: Any) -> bool:
    """Whether an entry of ``summary.json`` can be counted with."""
    if not isinstance(entry, dict) or not isinstance(entry.get("verdict"), str):
        return False
    save = entry.get("save")
    figures = (
        [entry.get("seconds"), *((save or {}).get(name) for name in _SAVE)] if isinstance(save, dict | None) else ["?"]
    )
    texts = [entry.get("path"), entry.get("reason")]
    is_told = isinstance(entry.get("overrides"), list) and all(isinstance(one, str) for one in entry["overrides"])
    is_counted = all(figure is None or is_number(figure) for figure in figures)
    return is_told and is_counted and all(text is None or isinstance(text, str) for text in texts)


def is_sound_verdict(verdict: Verdict) -> bool:
    """Whether texts of a verdict are texts, and what differs is told as it is written."""
    texts = (verdict.reason, verdict.advice, verdict.blame or "", *verdict.not_exercised, *verdict.not_covered)
    return (
        all(isinstance(text, str) for text in texts)
        and isinstance(verdict.checks, list)
        and _is_sound_difference(verdict.first_difference)
        and all(map(_is_sound_check, verdict.checks))
    )


def _is_sound_check(check: Check) -> bool:
    texts = (check.name, check.detail, check.blame or "")
    return all(isinstance(text, str) for text in texts) and _is_sound_difference(check.first_difference)


def _is_sound_difference(first: Difference | None) -> bool:
    if first is None:
        return True
    texts = (first.component or "", first.leaf or "")
    is_placed = first.index is None or isinstance(first.index, Sequence)
    return all(isinstance(text, str) for text in texts) and is_placed and (first.ulp is None or is_number(first.ulp))
