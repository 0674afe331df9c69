"""The page as text: everything that matters is in it without JavaScript, names do no harm, and it stays small."""

import re
import time
from html.parser import HTMLParser

import pytest

from ckptrun.__main__ import main
from ckptrun.evidence.verdict import Check, Status
from ckptrun.report.page import MOST_BYTES
from ckptrun.report.write import write_report
from tests.report.folders import LOST, make_proof, make_sweep, verdict_with

HOSTILE = "<img src=x onerror=alert(1)>\"'&{{ 7 * 7 }}</script>"
VOID = {"meta", "link", "input", "br", "path", "rect", "circle", "polyline"}


class Parsed(HTMLParser):
    """The elements of a page, and the text of it; tags that are not closed in order are an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.stack: list[str] = []
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag) -> None:
        if tag in VOID:
            return
        assert self.stack.pop() == tag, f"{tag} at {self.getpos()}"

    def handle_data(self, data) -> None:
        if self.stack[-1:] not in (["style"], ["script"]):
            self.text += data

    def with_id(self) -> set[str]:
        return {attrs["id"] for _, attrs in self.tags if "id" in attrs}


def parsed(folder) -> Parsed:
    return Parsed(write_report(folder).read_text())


def grid(count):
    return [{"parallelism": f"p{number // 4}", "mode": f"m{number % 4}"} for number in range(count)]


def test_the_first_screen_says_what_came_out_where_and_how_to_see_it_again(tmp_path) -> None:
    cells = [(values, verdict_with(LOST if number == 2 else None)) for number, values in enumerate(grid(8))]
    page = parsed(make_sweep(tmp_path / "s", cells))
    places = [
        page.text.index(text)
        for text in (
            "7 of 8 cells are equal; 1 is different: the optimizer did not come back as it was saved.",
            "3: a verdict is different",
            "15.0 s",
            "2.13.0",
            "What is the matter, by cause",
            "step 6, rank 1",
            "optimizer.state.layers.0.weight.exp_avg",
            "0xbc2611e0",
            "1,009,127,904 ULP",
            "To blame: optimizer",
            "Look at: Moments or options",
            "python -m ckptrun parallelism=p0 mode=m2",
            "All cells",
            "Not covered",
            "epoch end: an epoch has 64 samples",
            "Across cells",
            "Each cell",
        )
    ]
    assert places == sorted(places)


def test_each_cell_of_the_matrix_leads_to_its_details(tmp_path) -> None:
    page = parsed(make_sweep(tmp_path / "s", [(values, verdict_with()) for values in grid(7)]))
    links = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a" and attrs["href"].startswith("#")}
    assert links == {f"cell-{number}" for number in range(1, 8)}
    assert links <= page.with_id()
    assert sum(tag == "details" and "data-state" in attrs for tag, attrs in page.tags) == 7
    assert page.text.count("Steps of each rank") == 7


def test_a_cell_has_its_checks_starts_saves_costs_and_logs(tmp_path) -> None:
    text = parsed(make_proof(tmp_path / "p", verdict_with(LOST), log="the last words\n")).text
    for words in (
        "loaded_equals_saved", "trajectory", "came back with other bits", "planned: sigkill",
        "struck: sigkill of rank 1 at after_optimizer of step 6", "step 4", "complete", "3.1", "step_00000008", "40 ms", "500 ms",
        "1 step done and done again, 0.25 s on rank 0", "the last words", "start_00001.rank_00001.log",
    ):  # fmt: skip
        assert words in text, words


def test_the_timeline_marks_steps_done_again_kills_and_saves_in_flight(tmp_path) -> None:
    page = parsed(make_proof(tmp_path / "p", verdict_with()))
    kinds = [attrs.get("class") for tag, attrs in page.tags if tag in ("rect", "path", "polyline")]
    # Two ranks with two starts each; step 5 again on both; the fault of rank 1; four saves; a kill and a resume in the plot.
    counts = {name: kinds.count(name) for name in ("step", "redo", "cross", "save", "kill", "resume", "ref")}
    assert counts == {"step": 4, "redo": 2, "cross": 1, "save": 4, "kill": 1, "resume": 1, "ref": 1}
    assert "step_00000004: requested after step 4, commit seen after step 5" in page.text


def test_names_and_texts_of_files_do_nothing_on_the_page(tmp_path) -> None:
    first = type(LOST)(step=1, rank=0, component=HOSTILE, leaf=HOSTILE, expected=HOSTILE, got=HOSTILE)
    bad = Check(name="resume", status=Status.different, detail=HOSTILE, first_difference=first, blame=HOSTILE)
    verdict = type(verdict_with())(
        status=Status.different, checks=[bad], first_difference=first, blame=HOSTILE, reason=f"resume: {HOSTILE}",
        advice=HOSTILE, not_exercised=[HOSTILE], not_covered=[HOSTILE],
    )  # fmt: skip
    cells = [
        ({"a": HOSTILE, HOSTILE: "b"}, verdict),
        ({"a": "x", HOSTILE: "c"}, HOSTILE),
        ({"a": "y", HOSTILE: "d"}, verdict_with()),
    ]
    folder = make_sweep(tmp_path / "s<b>", cells)
    (folder / "made<i>'by hand").mkdir()
    (folder / "made<i>'by hand" / "config.yaml").touch()
    for proof in (next(folder.glob("a=<img*")), folder):
        page = parsed(proof)
        names = {tag for tag, _ in page.tags}
        assert not names & {"img", "b>", "i"}
        assert sum(tag == "script" for tag, _ in page.tags) == 1
        assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
        assert HOSTILE in page.text
        assert "{{ 7 * 7 }}" in page.text


def test_nothing_is_loaded_from_outside(tmp_path) -> None:
    page = parsed(make_sweep(tmp_path / "s", [(values, verdict_with()) for values in grid(4)]))
    policy = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"]
    assert not [attrs for _, attrs in page.tags if "src" in attrs]
    assert {attrs["href"][:1] for _, attrs in page.tags if "href" in attrs} == {"#", "d"}
    assert [attrs["href"] for tag, attrs in page.tags if tag == "link"] == ["data:,"]
    assert not re.search(r"https?://", page.text)


@pytest.mark.parametrize("count", [0, 1])
def test_a_sweep_of_no_cell_and_of_one(count, tmp_path) -> None:
    page = parsed(make_sweep(tmp_path / "s", [(values, verdict_with()) for values in grid(count)]))
    assert ("No cell was run." if count == 0 else "The only cell is equal.") in page.text


def test_the_page_of_a_cell_has_the_command_of_that_cell_and_leads_to_the_sweep(tmp_path) -> None:
    folder = make_sweep(tmp_path / "all", [(values, verdict_with()) for values in grid(3)])
    page = parsed(folder / "parallelism=p0,mode=m1")
    assert "python -m ckptrun parallelism=p0 mode=m1" in page.text
    assert "One cell of all" in page.text
    assert ("a", {"href": "../report.html"}) in page.tags
    # And back.
    assert "parallelism%3Dp0%2Cmode%3Dm1/report.html" in write_report(folder).read_text()


def test_a_sweep_that_was_ended_says_so(tmp_path) -> None:
    page = parsed(make_sweep(tmp_path / "s", [(grid(1)[0], verdict_with())], is_finished=False))
    assert "none: it has not ended, or was ended" in page.text


def test_five_hundred_cells_take_less_than_a_megabyte_and_five_seconds(tmp_path) -> None:
    cells = [(values, verdict_with(LOST if number % 50 == 7 else None)) for number, values in enumerate(grid(500))]
    folder = make_sweep(tmp_path / "s", cells)
    began = time.process_time()
    place = write_report(folder)
    took = time.process_time() - began
    assert place.stat().st_size < MOST_BYTES
    assert took < 5
    page = Parsed(place.read_text())
    assert "490 of 500 cells are equal; 10 are different" in page.text
    assert sum(tag == "details" and "data-state" in attrs for tag, attrs in page.tags) == 500
    # What is left out of the page is told, and it is not the cells that differ.
    short = int(re.search(r"([\d,]+) of 500 cells are shown in short", page.text)[1])
    assert page.text.count("Steps of each rank") == 500 - short > 10
    bodies = place.read_text().split('<details class="cell different"')[1:]
    assert len(bodies) == 10
    assert all("Steps of each rank" in body for body in bodies)


def test_the_command_writes_it_and_says_where(tmp_path, monkeypatch, capsys) -> None:
    older = make_sweep(tmp_path / "a", [(grid(1)[0], verdict_with(LOST))])
    newer = make_sweep(tmp_path / "b", [(grid(1)[0], verdict_with())])
    monkeypatch.setattr("sys.argv", ["ckptrun", "report", str(newer), "--against", str(older)])
    assert main() == 0
    assert capsys.readouterr().out == f"{newer}/report.html\n"
    assert "equal, was different" in (newer / "report.html").read_text()
    monkeypatch.setattr("sys.argv", ["ckptrun", "report", str(tmp_path / "none")])
    assert main() == 2
    assert "holds no sweep, proof or run" in capsys.readouterr().err
