"""The page in a real Chromium without a network: what is seen first, clicks, keys, sizes, names that would do harm."""

import shutil

import pytest

from ckptrun.report.write import write_report
from tests.report.folders import LOST, make_proof, make_sweep, verdict_with

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")]

HOSTILE = "<img src=x onerror=alert(1)>\"'&</script><script>alert(2)</script>"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """A page, and everything that it complained of or asked for."""

    def __init__(self, browser, place, *, viewport=WIDE, **options) -> None:
        self.context = browser.new_context(viewport=viewport, offline=True, **options)
        self.context.set_default_timeout(10_000)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(place.as_uri())

    def __enter__(self):
        return self

    def __exit__(self, kind, error, at) -> None:
        self.context.close()
        if kind is None:
            assert self.complaints == []
            assert [url for url in self.asked if not url.startswith(("file:", "data:"))] == []

    def shown(self) -> list[str]:
        return self.page.eval_on_selector_all("details.cell:not([hidden]) .body", "all => all.map(one => one.id)")

    def focused(self) -> str:
        return self.page.evaluate(
            "document.activeElement.hash || document.activeElement.id || document.activeElement.tagName"
        )

    def opened(self) -> list[str]:
        return self.page.eval_on_selector_all("details.cell[open] > .body", "all => all.map(one => one.id)")


def sweep_of(folder, count, *, differ=()):
    grid = [{"parallelism": f"p{number // 4}", "mode": f"m{number % 4}"} for number in range(count)]
    cells = [(values, verdict_with(LOST if number in differ else None)) for number, values in enumerate(grid, start=1)]
    return write_report(make_sweep(folder, cells))


@pytest.fixture(scope="module")
def two_of_24(tmp_path_factory):
    return sweep_of(tmp_path_factory.mktemp("report") / "s", 24, differ=(7, 18))


@pytest.mark.parametrize("viewport", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("count", [0, 1, 24, 500])
def test_it_opens_without_a_complaint_and_fits_the_screen(count, viewport, browser, tmp_path) -> None:
    place = sweep_of(tmp_path / "s", count, differ=(count,) if count else ())
    with Opened(browser, place, viewport=viewport) as opened:
        assert len(opened.shown()) == count
        assert opened.page.evaluate("document.documentElement.scrollWidth") == viewport["width"]
        for body in opened.shown()[:2]:
            opened.page.evaluate(f"document.getElementById('{body}').closest('details').open = true")
        assert opened.page.evaluate("document.documentElement.scrollWidth") == viewport["width"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_first_screen_has_failing_cell_leaf_and_command(scheme, browser, two_of_24) -> None:
    with Opened(browser, two_of_24, color_scheme=scheme) as opened:
        page = opened.page
        seen = [
            page.get_by_text("22 of 24 cells are equal; 2 are different: the optimizer did not come back"),
            page.locator("#causes").get_by_role("link", name="parallelism=p1 mode=m2"),
            page.locator("#causes .leaf td"),
            page.locator("#causes .again pre"),
            page.locator(".matrix a.different").first,
        ]
        for place in seen:
            box = place.bounding_box()
            assert box is not None
            assert box["y"] + box["height"] <= WIDE["height"]
        assert page.locator("#causes .leaf td").inner_text() == LOST.leaf
        assert page.locator("#causes .again pre").inner_text() == "python -m ckptrun parallelism=p1 mode=m2"


CONTRAST = """() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map((v) => { v /= 255; return v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; });
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const back = (one) => { while (one && getComputedStyle(one).backgroundColor === "rgba(0, 0, 0, 0)") one = one.parentElement; return getComputedStyle(one || document.body).backgroundColor; };
  return [...document.querySelectorAll(".matrix a, .glyph, .dim, .facts li, .un b, h2, h4, summary, button, .leaf td, td, th, p")].map((one) => {
    const [a, b] = [light(getComputedStyle(one).color), light(back(one))].sort((x, y) => y - x);
    return [(a + .05) / (b + .05), one.className + " " + one.tagName];
  }).sort((a, b) => a[0] - b[0])[0];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_stands_out_from_what_it_stands_on(scheme, browser, tmp_path) -> None:
    """By 4.5 to 1 at least, as WCAG 2 has it."""
    cells = [({"a": "1"}, verdict_with()), ({"a": "2"}, verdict_with(LOST)), ({"a": "3"}, "makes no sense")]
    with Opened(browser, write_report(make_sweep(tmp_path / "s", cells)), color_scheme=scheme) as opened:
        contrast, where = opened.page.evaluate(CONTRAST)
        assert contrast >= 4.5, where


def test_a_click_in_the_matrix_opens_the_cell(browser, two_of_24) -> None:
    with Opened(browser, two_of_24) as opened:
        assert opened.opened() == []
        opened.page.locator(".matrix a[href='#cell-18']").click()
        assert opened.opened() == ["cell-18"]
        assert opened.page.locator("#cell-18").get_by_text("Steps of each rank").is_visible()


def test_without_javascript_it_shows_the_same(browser, two_of_24) -> None:
    with Opened(browser, two_of_24, java_script_enabled=False) as opened:
        page = opened.page
        assert page.locator("#causes .again pre").is_visible()
        assert page.get_by_text("epoch end: an epoch has 64 samples").first.is_visible()
        assert page.locator("details.cell").count() == 24
        assert not page.locator("#filter").is_visible()
        page.locator(".matrix a[href='#cell-7']").click()
        assert page.locator("#cell-7").is_visible()
        page.locator("details.cell summary").first.click()
        assert page.locator("#cell-1").get_by_text("Check by check").is_visible()


def test_the_filter_takes_words_and_verdicts(browser, two_of_24) -> None:
    with Opened(browser, two_of_24) as opened:
        page = opened.page
        page.locator("#filter").fill("exp_avg mode=m1")
        assert opened.shown() == ["cell-18"]
        assert page.locator(".matrix a:not(.off)").count() == 1
        assert page.locator("#shown").inner_text() == "1 of 24 shown"
        page.locator("#filter").press("Escape")
        assert len(opened.shown()) == 24
        button = page.locator("button[data-state=different]")
        button.click()
        assert (opened.shown(), button.get_attribute("aria-pressed")) == (["cell-7", "cell-18"], "true")
        button.click()
        assert len(opened.shown()) == 24


def test_cells_are_put_in_order(browser, two_of_24) -> None:
    with Opened(browser, two_of_24) as opened:
        opened.page.locator("#order").select_option("worst")
        assert opened.shown()[:3] == ["cell-7", "cell-18", "cell-1"]
        opened.page.locator("#order").select_option("number")
        assert opened.shown()[:2] == ["cell-1", "cell-2"]


def test_keys_lead_to_what_is_not_equal_and_through_the_matrix(browser, two_of_24) -> None:
    with Opened(browser, two_of_24) as opened:
        keyboard = opened.page.keyboard
        for expected in (["cell-7"], ["cell-7", "cell-18"]):
            keyboard.press("n")
            assert opened.opened() == expected
        keyboard.press("m")
        assert opened.focused() == "#cell-1"
        for key, expected in (
            ("ArrowRight", "#cell-2"),
            ("ArrowDown", "#cell-6"),
            ("ArrowLeft", "#cell-5"),
            ("ArrowUp", "#cell-1"),
        ):
            keyboard.press(key)
            assert opened.focused() == expected
        keyboard.press("Enter")
        assert "cell-1" in opened.opened()
        keyboard.press("/")
        assert opened.focused() == "filter"
        # In the box letters are letters.
        keyboard.type("nmp")
        assert opened.page.locator("#filter").input_value() == "nmp"
        assert opened.shown() == []


def test_the_command_is_copied(browser, two_of_24) -> None:
    with Opened(browser, two_of_24, permissions=["clipboard-read", "clipboard-write"]) as opened:
        opened.page.locator("#causes button.copy").click()
        opened.page.get_by_text("copied").wait_for()
        assert opened.page.evaluate("navigator.clipboard.readText()") == "python -m ckptrun parallelism=p1 mode=m2"


def test_names_do_no_harm(browser, tmp_path) -> None:
    first = type(LOST)(step=1, rank=0, component=HOSTILE, leaf=HOSTILE, expected=HOSTILE, got=HOSTILE)
    cells = [({"a": HOSTILE}, verdict_with(first, not_exercised=[HOSTILE])), ({"a": "x"}, HOSTILE)]
    folder = make_sweep(tmp_path / "<b>'s", cells)
    for place in (write_report(folder), write_report(next(folder.glob("a=*")))):
        with Opened(browser, place) as opened:
            assert opened.page.locator("img").count() == 0
            assert opened.page.locator("script").count() == 1
            assert opened.page.get_by_text(HOSTILE).first.is_visible()


def test_a_proof_alone_shows_its_details_at_once(browser, tmp_path) -> None:
    with Opened(browser, write_report(make_proof(tmp_path / "p", verdict_with(LOST))), viewport=NARROW) as opened:
        assert opened.opened() == ["cell-1"]
        for words in ("Check by check", "Steps of each rank", "Loss", "Saves", "What processes printed last"):
            assert opened.page.get_by_text(words, exact=True).is_visible(), words
        opened.page.get_by_text("start_00001.rank_00001.log").click()
        assert opened.page.get_by_text("a last line").is_visible()
