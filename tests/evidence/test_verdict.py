"""A verdict as it stands on disk and before a person's eyes."""

import json
from pathlib import Path

from ckptrun.evidence.difference import Difference
from ckptrun.evidence.verdict import Check, Status, Verdict, read_verdict, verdict_of
from ckptrun.files import write_json
from ckptrun.proof.view import text_of


def _saying(not_exercised: tuple[str, ...], not_covered: tuple[str, ...]) -> Verdict:
    check = Check(name="trajectory", status=Status.equal, detail="4 steps")
    return Verdict(
        status=Status.equal, checks=[check], not_exercised=not_exercised, not_covered=not_covered, path="run"
    )


def test_what_a_verdict_says_nothing_of_is_written_read_and_shown(tmp_path: Path) -> None:
    verdict = _saying(("no epoch ended",), ("2 leaves of timer (proof.ignore)", "1 leaf of host"))
    write_json(tmp_path / "verdict.json", verdict.as_json())

    found = read_verdict(tmp_path)

    assert found.not_exercised == ("no epoch ended",)
    assert found.not_covered == ("2 leaves of timer (proof.ignore)", "1 leaf of host")
    lines = [line.split(maxsplit=2) for line in text_of(verdict).splitlines()]
    assert ["not", "exercised", "no epoch ended"] in lines
    assert ["not", "covered", "2 leaves of timer (proof.ignore); 1 leaf of host"] in lines


def test_a_verdict_that_says_of_everything_shows_no_such_line(tmp_path: Path) -> None:
    assert "not exercised" not in text_of(_saying((), ()))
    assert "not covered" not in text_of(_saying((), ()))


def test_a_verdict_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    content = verdict_of([Check(name="trajectory", status=Status.equal, detail="4 steps")]).as_json()
    del content["not_exercised"], content["not_covered"]
    write_json(tmp_path / "verdict.json", content)

    assert read_verdict(tmp_path).not_exercised == ()
    assert read_verdict(tmp_path).not_covered == ()


def test_a_first_difference_has_its_keys_on_disk_and_comes_back(tmp_path: Path) -> None:
    about = Difference.of_leaf("model.w", step=4, rank=1, expected=1.0, got=2.0)
    first = about.with_details(expected_bits="0x1p0", got_bits="0x1p1")
    check = Check(name="trajectory", status=Status.different, detail="loss", first_difference=first)
    write_json(tmp_path / "verdict.json", verdict_of([check]).as_json())

    content = json.loads((tmp_path / "verdict.json").read_text())
    found = read_verdict(tmp_path)

    always = {"step": 4, "rank": 1, "component": "model", "leaf": "model.w", "index": None, "ulp": None}
    more = {"expected": 1.0, "got": 2.0, "expected_bits": "0x1p0", "got_bits": "0x1p1"}
    assert content["first_difference"] == content["checks"][0]["first_difference"] == {**always, **more}
    assert (found.first_difference, found.checks[0], found.blame) == (first, check, "model")
