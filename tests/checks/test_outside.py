"""Which files legs have in common, from what was noted of them."""

import pytest

from ckptrun.checks.outside import Access, Window, check_outside, find_crossings, is_matched
from ckptrun.evidence.verdict import Status

WINDOWS = [
    Window(leg="reference", start=0, began=100),
    Window(leg="run", start=0, began=200),
    Window(leg="run", start=1, began=300),
    Window(leg="controls", start=0, began=400),
]
FILE = "/data/cache/1.pkl"


def access(where: str, at: int, how: str, changed: int | None = None, path: str = FILE) -> Access:
    leg, _, start = where.partition("@")
    return Access(leg=leg, start=int(start or 0), at=at, how=how, path=path, changed=changed)


def crossings(*accesses: Access, known=None, there=lambda path: True):
    return find_crossings(accesses, WINDOWS, known=known or {}, is_there=there)


@pytest.mark.parametrize(
    ("accesses", "writer", "reader"),
    [
        # A cache: filled by the reference, read by the run.
        ([access("reference", 110, "fresh"), access("run", 210, "read", 111)], "reference", "run"),
        # Written by what is not seen (a library, a process of the user's): the time tells.
        ([access("run", 210, "read", 150)], "reference", "run"),
        # A counter: read, and written in place.
        ([access("run", 210, "read", 150), access("run", 210, "append", 150)], "reference", "run"),
        # Appended to first, and read then: what was there before is read too.
        ([access("run", 210, "append", 150), access("run", 220, "read", 211)], "reference", "run"),
        # Through memory, or on storage with a slow clock: no time tells.
        ([access("reference", 110, "fresh"), access("run", 210, "read", 50)], "reference", "run"),
        # The killed run left it, and the controls found it.
        ([access("run@1", 310, "fresh"), access("controls", 410, "read", 320)], "run", "controls"),
    ],
)
def test_what_one_leg_wrote_and_another_read_is_found(accesses, writer, reader) -> None:
    (found,) = crossings(*accesses)
    assert (found.path, found.writer, found.reader) == (FILE, writer, reader)


@pytest.mark.parametrize(
    "accesses",
    [
        # Scratch: each leg makes it anew before it reads it.
        [
            access("reference", 110, "fresh"),
            access("reference", 120, "read", 111),
            access("run", 210, "fresh"),
            access("run", 220, "read", 211),
        ],
        # The same, removed at the end.
        [
            access("reference", 105, "missed"),
            access("reference", 110, "fresh"),
            access("reference", 120, "removed", 111),
            access("run", 205, "missed"),
            access("run", 210, "fresh"),
        ],
        # A resumed run finds what it had left itself: so it would anywhere.
        [access("run", 210, "fresh"), access("run@1", 310, "read", 220)],
        # A log that all legs append to, and none reads.
        [access("reference", 110, "append", 50), access("run", 210, "append", 150)],
        # An input that nobody changed, though it was opened in a way that allows to.
        [access("reference", 110, "read", 50), access("reference", 110, "append", 50), access("run", 210, "read", 50)],
    ],
)
def test_what_legs_do_each_for_itself_is_no_matter(accesses) -> None:
    assert crossings(*accesses) == []


def test_a_file_that_a_leg_removed_and_another_one_missed_is_found() -> None:
    (found,) = crossings(
        access("reference", 110, "read", 50), access("reference", 120, "removed", 50), access("run", 210, "missed")
    )
    assert str(found) == f"{FILE} was removed by the reference and looked for by the run"


def test_a_folder_that_is_looked_through_shows_what_others_left() -> None:
    left = [access("reference", 110, "fresh"), access("run", 210, "listed", path="/data/cache")]
    (found,) = crossings(*left)
    assert str(found) == f"{FILE} was written by the reference into a folder that the run looked through"
    assert crossings(*left, there=lambda path: False) == []
    assert crossings(access("run", 210, "fresh"), access("run@1", 310, "listed", path="/data/cache")) == []


def test_a_proof_that_is_made_again_comes_to_the_same() -> None:
    again = access("reference", 110, "read", 55)
    assert crossings(again) == []
    (found,) = crossings(again, known={FILE: 55})
    assert str(found) == f"{FILE} was written by the earlier proof and read by the reference"
    # Since then somebody has made it anew.
    assert crossings(again, known={FILE: 44}) == []


def test_the_verdict_names_the_file_and_the_two_ways_out() -> None:
    found = crossings(access("run", 210, "read", 150), access("run", 211, "read", 151, path="/data/cache/2.pkl"))
    check = check_outside(found, accesses=2)
    assert (check.status, check.is_needed) == (Status.not_verified, True)
    assert check.detail.startswith(f"{FILE} was written by the reference and read by the run (and 1 more")
    assert "proof.private=[/data/cache]" in check.detail
    assert "proof.shared=['/data/cache/*']" in check.detail
    assert check_outside([], accesses=2).status is Status.equal


@pytest.mark.parametrize(
    ("pattern", "matches"),
    [
        *((pattern, True) for pattern in ("/data/cache/*", "/data/cache", "/data/cache/", "*.pkl", FILE)),
        *((pattern, False) for pattern in ("/data/cach", "/data/cache/1", "cache", "*.pt")),
    ],
)
def test_patterns_mean_paths_and_folders_above_them(pattern, matches) -> None:
    assert is_matched(FILE, [pattern]) is matches
