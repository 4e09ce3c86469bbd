"""The page in headless Chromium: it opens without an error, pictures are there, filters, tables and dialogs work.

Skipped where there is no Chromium with its driver (Debian: chromium and chromium-driver).
"""

from __future__ import annotations

import shutil

import pytest

from pose_common.report.page import make_page
from pose_common.report.runs import read_runs
from tests.pose_common.report.cases import make_run

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, of the extra test")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,  # starts a browser
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver"),
]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1300,1000",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.binary_location = BROWSER
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return read_runs([make_run(folder / "one"), make_run(folder / "two", seed=1)])


@pytest.fixture(scope="module", params=[1, 2], ids=["one run", "two runs"])
def opened(request, browser, runs, tmp_path_factory):
    """The browser with the page of one run, or of two."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(make_page(runs[: request.param]), encoding="utf8")
    browser.get(path.as_uri())
    return browser, runs[: request.param]


def ask(browser, expression: str):
    return browser.execute_script(f"return {expression}")


def choose(browser, **fields: str) -> int:
    """Sets fields of the filters, all others to their start; returns the number of pictures that it says."""
    browser.execute_script("document.getElementById('filters').reset()")
    ask(browser, "new Promise((done) => setTimeout(done, 20))")
    for name, value in {"result": "", **fields}.items():
        browser.execute_script(
            "const field = document.getElementById('filters').elements[arguments[0]];"
            "field.value = arguments[1]; field.dispatchEvent(new Event('change', { bubbles: true }))",
            name,
            str(value),
        )
    while ask(browser, "!document.getElementById('more').hidden"):
        browser.execute_script("document.getElementById('more').click()")
    said = int(ask(browser, "document.getElementById('count').textContent.split(' ')[0]"))
    assert said == ask(browser, "document.querySelectorAll('#cards .card').length")
    return said


def items_of(runs) -> list[dict]:
    return [{**i, "result": name} for run in runs for name, made in run.galleries.items() for i in made["items"]]


def test_it_opens_without_errors_and_pictures_are_there(opened):
    browser, runs = opened
    assert choose(browser) == len(items_of(runs))
    script = """
        const done = arguments[0];
        const sources = [...document.querySelectorAll('#cards image')].map((image) => image.getAttribute('href'));
        Promise.all(sources.map(async (source) => {
          const image = new Image(); image.src = source; await image.decode(); return image.naturalWidth;
        })).then(done, (error) => done(String(error)));
    """
    widths = browser.execute_async_script(script)
    assert sorted(widths) == sorted(item["width"] for item in items_of(runs))
    boxes = ask(
        browser, "[...document.querySelectorAll('#cards .tile svg')].map((s) => s.getBoundingClientRect().width)"
    )
    assert min(boxes) > 50
    assert browser.get_log("browser") == []


def test_filters_show_what_they_say(opened):
    browser, runs = opened
    items = items_of(runs)
    names = runs[0].galleries["coco val heads"]["keypoints"]
    wrist = names.index("left_wrist")
    swapped = [i for i in items if i["kinds"] and 3 in i["kinds"]]
    cases = {
        "result": ({"result": "coco val heads"}, [i for i in items if i["result"] == "coco val heads"]),
        "kind": ({"kind": 3}, swapped),
        "keypoint": ({"keypoint": "left_wrist"}, [i for i in items if i["truth"] and i["truth"][wrist][2]]),
        "both": ({"keypoint": "left_wrist", "kind": 4}, [i for i in items if i["kinds"] and i["kinds"][wrist] == 4]),
        "not found": ({"kind": 5}, [i for i in items if i["id"] is not None and i["kinds"] is None]),
        "nobody's": ({"kind": 6}, [i for i in items if i["id"] is None]),
        "size": ({"size": "large"}, [i for i in items if i["area"] and i["area"] > 96**2]),
        "score": ({"score_from": 0.5}, [i for i in items if i["score"] is not None and i["score"] >= 0.5]),
        "oks": ({"oks_to": 0.3}, [i for i in items if i["oks"] is not None and i["oks"] <= 0.3]),
    }
    for name, (fields, expected) in cases.items():
        assert 0 < len(expected) < len(items), f"the filter {name} would show nothing of interest"
        assert choose(browser, **fields) == len(expected), name
    if len(runs) > 1:
        assert choose(browser, run=1) == len(items_of(runs[1:]))


def test_the_order_and_the_view(opened):
    browser, _ = opened
    text = "[...document.querySelectorAll('#cards .meta b')].map((b) => b.textContent)"
    choose(browser, order="worst")
    first = [float(t.split()[1]) for t in ask(browser, text) if t.startswith("OKS")]
    choose(browser, order="best")
    last = [float(t.split()[1]) for t in ask(browser, text) if t.startswith("OKS")]
    assert first == sorted(first) and last == sorted(last, reverse=True)
    choose(browser, view="beside")
    tiles = ask(browser, "document.querySelectorAll('#cards .tile').length")
    assert tiles == 2 * ask(browser, "document.querySelectorAll('#cards .card').length")
    choose(browser, view="both")
    visible = "getComputedStyle(document.querySelector('#cards .skeleton.truth')).visibility"
    assert ask(browser, visible) == "hidden"
    element = ask(browser, "document.querySelector('#cards .card')")
    webdriver.ActionChains(browser).move_to_element(element).perform()
    assert ask(browser, visible) == "visible", "the truth shows under the pointer"
    choose(browser, view="overlay")
    assert ask(browser, visible) == "visible"


def test_a_picture_opens_large_and_the_keyboard_leads_on(opened):
    browser, _ = opened
    choose(browser)
    browser.execute_script("document.querySelector('#cards .card').click()")
    assert ask(browser, "document.getElementById('detail').open")
    title = ask(browser, "document.getElementById('detail-title').textContent")
    assert "(1 of " in title and ask(browser, "document.querySelectorAll('#detail-body .pair .tile').length") == 2
    first = ask(browser, "document.querySelectorAll('#detail-body .others figure').length")
    webdriver.ActionChains(browser).send_keys(webdriver.Keys.ARROW_RIGHT).perform()
    assert "(2 of " in ask(browser, "document.getElementById('detail-title').textContent")
    second = ask(browser, "document.querySelectorAll('#detail-body .others figure').length")
    assert first + second > 0, "the same person by the other maps"
    webdriver.ActionChains(browser).send_keys(webdriver.Keys.ESCAPE).perform()
    assert not ask(browser, "document.getElementById('detail').open")


def test_tables_are_sorted_and_chosen(opened):
    browser, runs = opened
    number = ask(browser, "document.querySelectorAll('.analysis').length")
    assert number == sum(len(run.analyses) for run in runs)
    shown = "[...document.querySelectorAll('.analysis')].filter((a) => a.offsetHeight).map((a) => a.dataset.index)"
    assert ask(browser, shown) == ["0"]
    browser.execute_script(
        "const p = document.getElementById('pick-errors'); p.value = '1'; p.dispatchEvent(new Event('change'))"
    )
    assert ask(browser, shown) == ["1"]
    column = (
        "[...document.querySelectorAll('.analysis.chosen .keypoints tbody tr')].map((r) => +r.cells[1].textContent)"
    )
    head = "document.querySelectorAll('.analysis.chosen .keypoints thead button')[1]"
    for order in (1, -1):
        browser.execute_script(f"{head}.click()")
        values = ask(browser, column)
        assert len(values) == 17 and values == sorted(values, reverse=order < 0)


def test_settings_are_found_and_lines_hidden(opened):
    browser, runs = opened
    browser.execute_script(
        "const f = document.getElementById('find-setting'); f.value = 'MOMENTUM'; f.dispatchEvent(new Event('input'))"
    )
    rows = "[...document.querySelectorAll('#all-settings tbody tr')].filter((r) => r.offsetHeight).length"
    assert ask(browser, rows) == 1
    lines = "document.querySelectorAll('#curves .line:not(.hidden)').length"
    before = ask(browser, lines)
    button = "document.querySelector('[data-toggle=\"coco\"]')"
    browser.execute_script(f"{button}.click()")
    assert ask(browser, lines) == before - 2 * len(runs) and ask(browser, f"{button}.ariaPressed") == "false"
    browser.execute_script(f"{button}.click()")
    assert ask(browser, lines) == before


def test_dark_and_light_differ_and_text_can_be_read(opened):
    """Contrast of text and page is at least 7 in both themes (WCAG's AAA)."""
    browser, _ = opened
    backgrounds = []
    for _ in range(2):
        browser.execute_script("document.getElementById('theme').click()")
        style = "getComputedStyle(document.{0}).{1}.match(/[0-9.]+/g).slice(0, 3).map(Number)"
        ink, card = (
            ask(browser, style.format("body", "color")),
            ask(browser, style.format("querySelector('section')", "backgroundColor")),
        )
        bright, dark = sorted((luminance(ink), luminance(card)), reverse=True)
        assert (bright + 0.05) / (dark + 0.05) > 7
        backgrounds.append(luminance(card))
    assert abs(backgrounds[0] - backgrounds[1]) > 0.5


def luminance(colour) -> float:
    """WCAG's relative luminance of (red, green, blue) from 0 to 255."""
    linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_nothing_has_failed_meanwhile(opened):
    browser, _ = opened
    assert browser.get_log("browser") == []


def test_a_narrow_window_has_no_sideways_scrolling(opened):
    browser, _ = opened
    browser.set_window_size(500, 900)
    try:
        assert ask(browser, "document.documentElement.scrollWidth <= window.innerWidth")
    finally:
        browser.set_window_size(1300, 1000)
