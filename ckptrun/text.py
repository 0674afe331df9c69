"""Texts that a person reads: safe to show on a terminal, numbers with units. Knows no output."""

from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["bytes_text", "counted", "cut", "cut_text", "elements_text", "joined", "printable"]

_UNITS = ("kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")


def printable(text: str) -> str:
    """Return ``text`` with what a terminal would obey, or cannot show, spelled out: names come from files."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def bytes_text(count: int) -> str:
    """Return a number of bytes with a decimal unit."""
    if count < 1000:
        return f"{count} B"
    power = 1
    while power < len(_UNITS) and count / 1000**power >= 999.95:
        power += 1
    return f"{count / 1000**power:.1f} {_UNITS[power - 1]}"


def elements_text(numbers: Iterable[int]) -> str:
    """Return a shape, offsets or an index."""
    return f"[{', '.join(map(str, numbers))}]"


def cut(value: Any, width: int) -> str:
    """Return how a plain value is written in Python, cut to ``width`` characters."""
    return cut_text(repr(value), width)


def cut_text(text: str, width: int) -> str:
    """Return a text, cut to ``width`` characters."""
    return text if len(text) <= width else f"{text[: width - 3]}..."


def joined(names: Sequence[str], limit: int = 5) -> str:
    """Return the first names, and how many more there are."""
    more = f" and {len(names) - limit:,} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """Return a number with its noun, which takes an s where ``plural`` does not say otherwise."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"
