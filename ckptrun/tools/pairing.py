"""Which leaves of two checkpoints are compared with each other, and what to try when none are. Must not print."""

from collections import Counter
from collections.abc import Collection, Iterable

from ckptrun.errors import ConfigError
from ckptrun.tools.near_names import near_names

__all__ = ["hint_of_prefixes", "keep_only", "strip_prefix"]

_LOOKED_AT = 2000


def strip_prefix(names: Collection[str], prefix: str | None, *, option: str) -> dict[str, str]:
    """Return the names below ``prefix``, without it -> the names themselves; all of them without a prefix.

    Raises:
        ConfigError: There are none.
    """
    if prefix is None:
        return {name: name for name in names}
    below = f"{prefix.rstrip('.')}."
    found = {name.removeprefix(below): name for name in names if name.startswith(below)}
    if not found:
        raise ConfigError(f"{option}={prefix}: no leaf is below that. {near_names(prefix, names)}")
    return found


def keep_only(name: str, prefix: str | None) -> bool:
    """Whether a leaf is called ``prefix``, or is below it."""
    return prefix is None or name == prefix or name.startswith(f"{prefix.rstrip('.')}.")


def hint_of_prefixes(a: Collection[str], b: Collection[str]) -> str:
    """Return which option makes names of the two agree."""
    in_b, in_a = _common_prefix(a, b), _common_prefix(b, a)
    if in_b is None and in_a is None:
        return "No prefix would make names agree."
    if in_a is None or (in_b is not None and in_b[1] >= in_a[1]):
        option, (prefix, count) = "--prefix-b", in_b or ("", 0)
    else:
        option, (prefix, count) = "--prefix-a", in_a
    return f"With {option} {prefix} at least {count:,} would agree."


def _common_prefix(short: Collection[str], long: Iterable[str]) -> tuple[str, int] | None:
    """What most often stands before a name of ``short`` in ``long``, and how often."""
    counts: Counter[str] = Counter()
    wanted = set(short)
    for _, name in zip(range(_LOOKED_AT), long, strict=False):
        prefix, rest = "", name
        while "." in rest:
            element, _, rest = rest.partition(".")
            prefix = f"{prefix}.{element}" if prefix else element
            if rest in wanted:
                counts[prefix] += 1
    return next(iter(counts.most_common(1)), None)
