"""What stands on the page of a CI job: as text it is what it is, whatever names hold, and it is small."""

import pytest
from markdown_it import MarkdownIt

from ckptrun.app import _tell_ci
from ckptrun.report.write import write_report
from tests.report.folders import LOST, make_proof, make_sweep, verdict_with

HOSTILE = "a|b `c` **d** <img src=x> [e](f) _g_ # h ~~i~~\n\n- j &amp; \\"
GRID = [{"parallelism": f"p{number // 4}", "mode": f"m{number % 4}"} for number in range(500)]


def read(folder) -> str:
    write_report(folder)
    return (folder / "summary.md").read_text()


def html(text: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False}).render(text)


def test_it_says_what_came_out_by_cause_with_a_command(tmp_path) -> None:
    cells = [(values, verdict_with(LOST if number == 2 else None)) for number, values in enumerate(GRID[:20])]
    text = read(make_sweep(tmp_path / "s", cells))
    places = [
        text.index(words)
        for words in (
            "## ✗ 19 of 20 cells are equal; 1 is different",
            "exit code 3",
            "### ✗ different: the optimizer did not come back as it was saved (1 of 20 cells)",
            "| first at | step 6, rank 1 |",
            "0xbc2611e0",
            "To blame: **optimizer**",
            "```\npython -m ckptrun parallelism=p0 mode=m2\n```",
            "| parallelism | mode=m0 | mode=m1 | mode=m2 | mode=m3 |",
            "| p0 | ✓ 60 ms | ✓ 60 ms | ✗ 60 ms | ✓ 60 ms |",
            "### Not covered",
            "(20 of 20 cells)",
        )
    ]
    assert places == sorted(places)


def test_names_are_text_and_no_markdown(tmp_path) -> None:
    first = type(LOST)(step=1, rank=0, component=HOSTILE, leaf=HOSTILE, expected="```", got=HOSTILE)
    verdict = verdict_with(first, not_exercised=[HOSTILE])
    shown = html(read(make_sweep(tmp_path / "s", [({"a": HOSTILE.replace("/", "")}, verdict), ({"a": "x"}, HOSTILE)])))
    flat = " ".join(HOSTILE.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert shown.count(flat) >= 4
    for tag in ("<img", "<a ", "<em", "<s>", "<h1", "<h4"):
        assert tag not in shown, tag
    assert shown.count("<strong>") == shown.count("</strong>") == 3
    assert shown.count("<pre>") == 1


def test_it_stays_small_and_says_what_it_leaves_out(tmp_path) -> None:
    text = read(make_sweep(tmp_path / "s", [(values, "makes no sense") for values in GRID]))
    assert len(text.encode()) < 60_000
    assert "65 further rows stand in report.html." in text


def test_it_goes_to_the_page_of_the_ci_job_behind_what_is_there(tmp_path, monkeypatch) -> None:
    folder, page = make_proof(tmp_path / "p", verdict_with()), tmp_path / "page.md"
    text = read(folder)
    page.write_text("before\n")
    _tell_ci(folder)
    assert page.read_text() == "before\n"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    _tell_ci(folder)
    assert page.read_text() == f"before\n{text}\n"
    # Of several ranks one speaks; a run that proves nothing leaves nothing.
    monkeypatch.setenv("RANK", "1")
    _tell_ci(folder)
    monkeypatch.setenv("RANK", "0")
    _tell_ci(tmp_path)
    assert page.read_text() == f"before\n{text}\n"


@pytest.mark.parametrize("verdict", [None, verdict_with()])
def test_of_a_proof_there_is_no_matrix(verdict, tmp_path) -> None:
    text = read(make_proof(tmp_path / "p", verdict))
    assert text.startswith("## … Not finished" if verdict is None else "## ✓ Equal: killed and resumed")
    assert "All cells" not in text
