"""What the names of files promise: that they are an index, or one of several parts. Must not import torch.

``model-00001-of-00003`` promises three parts; ``consolidated.02`` promises those before it.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from ckptrun.text import joined

__all__ = ["TORCH_SUFFIXES", "is_index_name", "missing_by_name", "part_of", "series_of"]

TORCH_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
"""What names of files of ``torch.save`` end in, where they may be parts of one state."""

_INDEX = re.compile(r".*\.index.*\.json", re.DOTALL)
_MAX_COUNT = 100_000
# 00001-of-00003, 1_of_3, 1of3: with what stands before and after. torch's own writer has a name of the rank in front.
_COUNTED = re.compile(
    r"(?:shard-(?P<rank>\d+)-)?(?P<stem>.*?)[-_.]?(?P<number>\d+)[-_.]?of[-_.]?(?P<count>\d+)(?P<rest>(?:\D.*)?)"
)
# Numbered without a count: a gap is a file that is missing.
_FROM_0 = ("consolidated", "rank")
_NUMBERED = re.compile(r"(?P<stem>.*?(?:consolidated|rank|shard|part)[-_.]?)(?P<number>\d+)(?P<rest>\D.*)")


def is_index_name(name: str) -> bool:
    """Whether a file is called as indexes are."""
    return _INDEX.fullmatch(name) is not None


def part_of(name: str) -> tuple[int, int] | None:
    """Return number and count of a file whose name says that it is one of several parts."""
    match = _COUNTED.fullmatch(name)
    if match is None or not 1 < int(match["count"]) <= _MAX_COUNT or int(match["number"]) > int(match["count"]):
        return None
    return int(match["number"]), int(match["count"])


def series_of(name: str) -> tuple[str, str, int | None] | None:
    """Return what the names of all parts of one checkpoint have in common; None where a name counts nothing."""
    if part_of(name) is not None and (match := _COUNTED.fullmatch(name)):
        return match["stem"], match["rest"], int(match["count"])
    if match := _NUMBERED.fullmatch(name):
        return match["stem"], match["rest"], None
    return None


def missing_by_name(names: Sequence[str], *, only_of: set[str] | None = None) -> Iterator[str]:
    """Yield a sentence for each series of files that has gaps, as far as names tell.

    Args:
        names: Of files.
        only_of: Only series that one of these belongs to.
    """
    counted_groups: dict[tuple[str, str, int], dict[int, str]] = defaultdict(dict)
    numbered_groups: dict[tuple[str, str], dict[int, str]] = defaultdict(dict)
    ranks: dict[int, str] = {}
    for name in names:
        if match := _COUNTED.fullmatch(name):
            if match["rank"] is not None:
                ranks[int(match["rank"])] = name
            if part_of(name) is not None or int(match["count"]) == 1:
                counted_groups[match["stem"], match["rest"], int(match["count"])][int(match["number"])] = name
        elif match := _NUMBERED.fullmatch(name):
            numbered_groups[match["stem"], match["rest"]][int(match["number"])] = name
    for (_, _, count), found in counted_groups.items():
        # Counted from 1 by most, from 0 by some.
        expected = range(count) if 0 in found else range(1, count + 1)
        yield from _absent(found, expected, only_of, f"the names say that there are {count}")
    for (stem, _), found in numbered_groups.items():
        # Names such as rank_100 alone are no series.
        if len(found) * 4 >= max(found):
            expected = range(0 if stem.startswith(_FROM_0) or min(found) > 1 else min(found), max(found) + 1)
            yield from _absent(found, expected, only_of, "there are others with higher numbers")
    gone = [f"shard-{rank:05d}" for rank in range(min(min(ranks), 1), max(ranks)) if rank not in ranks] if ranks else []
    if gone:
        yield f"the files of {joined(gone)} are missing: there are others with higher numbers"


def _absent(found: Mapping[int, str], expected: range, only_of: set[str] | None, why: str) -> Iterator[str]:
    if only_of is not None and not only_of & set(found.values()):
        return
    gone = [_renumbered(found, number) for number in expected if number not in found]
    if gone:
        yield f"{joined(gone)} {'is' if len(gone) == 1 else 'are'} missing: {why}"


def _renumbered(found: Mapping[int, str], number: int) -> str:
    """What the file of another number is called."""
    like = next(iter(found.values()))
    match = _COUNTED.fullmatch(like) or _NUMBERED.fullmatch(like)
    if match is None:
        return like
    begin, end = match.span("number")
    return f"{like[:begin]}{str(number).zfill(end - begin)}{like[end:]}"
