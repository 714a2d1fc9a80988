"""report.html: what is in it, and what a browser makes of it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import synthetic_runs
from browser import CHROMIUM, Browser

from mtlcli.comparison.figures.curves import histories
from mtlcli.comparison.finished import read_runs
from mtlcli.comparison.page import document, embedded, page, write_page
from mtlcli.comparison.report import report as compare_runs
from mtlcli.errors import MtlError

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "{{data}}",
    "a&amp;b\u2028",
]
LIMIT = 3_000_000  # bytes


class Elements(HTMLParser):
    """The tags of a page, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inside = False
        self.texts: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.inside = tag in ("script", "style")
        if self.inside:
            self.texts.append((tag, ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.texts[-1] = (self.texts[-1][0], self.texts[-1][1] + data)


def write(folder: Path, **about: Any) -> Path:
    report, runs = synthetic_runs.build(folder, **about)
    write_page(report, runs, folder / "report.html")
    return folder / "report.html"


# -- without a browser -------------------------------------------------------------------------------------------------


def test_the_data_cannot_end_their_script() -> None:
    values = dict.fromkeys(HOSTILE, "\u2029")
    text = embedded(values)
    assert not set("<>&\u2028\u2029") & set(text)
    assert json.loads(text) == values


def test_numbers_that_are_not_finite_are_null() -> None:
    assert embedded({"a": [float("nan"), float("inf")]}) == '{"a": [null, null]}'


def test_the_page_is_whole_and_the_same_every_time(tmp_path: Path) -> None:
    report, runs = synthetic_runs.build(tmp_path, methods=HOSTILE, epochs=2, failed=["<b>failed</b>"])
    report["dataset"] = "{{script}}</title><script>alert(3)</script>"
    write_page(report, runs, tmp_path / "one.html")
    write_page(report, runs, tmp_path / "two.html")
    text = (tmp_path / "one.html").read_text(encoding="utf-8")
    assert text == (tmp_path / "two.html").read_text(encoding="utf-8")
    found = Elements(text)
    assert [tag for tag, _ in found.texts] == ["style", "script", "script"]
    assert not {"img", "iframe", "object"} & set(found.tags)
    values = json.loads(found.texts[1][1])
    assert values["report"] == json.loads(json.dumps(report))
    assert set(values["histories"]) == {*HOSTILE, "single_task"}


def test_the_page_loads_nothing_and_runs_no_other_script(tmp_path: Path) -> None:
    text = write(tmp_path, epochs=2).read_text(encoding="utf-8")
    found = Elements(text)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', text)
    assert policy
    assert policy[1].startswith("default-src 'none'; ")
    for kind, content in (found.texts[0], found.texts[2]):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    addresses = set(re.findall(r"\b(?:https?:)?//[\w.-]+\.\w+[\w/.]*", text))
    assert addresses <= {"http://www.w3.org/1999/xhtml", "http://www.w3.org/2000/svg"}  # names, not places
    assert not re.search(r"(src|href)=(?!\"(#|data:,))", text)


def test_a_report_with_little_in_it(tmp_path: Path) -> None:
    report, _ = synthetic_runs.build(tmp_path, methods=["plain"], baseline=False, epochs=1, failed=["broken"])
    found = document(report, {})
    assert (found["gains"], found["histories"], found["order"]) == ({}, {}, ["plain"])
    for key in ("reference", "notes"):
        del report[key]
    report["rows"] = report["rows"][1:]
    assert document(report, {})["order"] == []
    assert page(report, {}).count("{{") == 0


def test_bands_no_wider_than_the_line_are_not_stored(tmp_path: Path) -> None:
    report, runs = synthetic_runs.build(tmp_path, seeds=(0,), epochs=2)
    found = document(report, histories(report, runs, tmp_path))["histories"]["plain"]
    assert set(found["weights"]["income"]) == {"x", "mean"}


def test_a_page_of_forty_methods_is_small(tmp_path: Path) -> None:
    methods = [f"method_{number:02}" for number in range(40)]
    assert write(tmp_path, methods=methods, seeds=(0, 1), epochs=50).stat().st_size < LIMIT


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    report, runs = synthetic_runs.build(tmp_path, epochs=1)
    with pytest.raises(MtlError, match=r"report\.html: cannot be written"):
        write_page(report, runs, tmp_path / "missing" / "report.html")


# -- in a browser ------------------------------------------------------------------------------------------------------

in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (on Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("usual"), epochs=6, failed=["broken"])


def methods(browser: Browser) -> list[str]:
    """The first cells of the table's rows."""
    script = "[...document.querySelectorAll('#results-table tbody tr:not([hidden]) th')].map(n => n.innerText.trim())"
    return [text.split("\n")[0] for text in browser.evaluate(script)]


def column(browser: Browser, number: int) -> list[float]:
    script = (
        f"[...document.querySelectorAll('#results-table tbody tr:not(.failed) td:nth-child({number})')]"
        ".map(n => parseFloat(n.innerText))"
    )
    return [float(value) for value in browser.evaluate(script)]


def quiet(browser: Browser, file: Path) -> None:
    """Nothing on the console, and nothing asked for but the page itself."""
    assert browser.problems() == []
    assert browser.requests() == [file.resolve().as_uri()]


@in_browser
@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_draws_itself_and_fits_the_window(browser: Browser, usual: Path, width: int, dark: bool) -> None:
    browser.open(usual, width, dark=dark)
    assert browser.evaluate("document.querySelectorAll('figure').length") == 6
    assert browser.evaluate("document.querySelectorAll('svg.chart').length") == 9
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("Math.max(...[...document.querySelectorAll('svg.chart')].map(n => n.clientWidth))") <= width
    assert browser.evaluate("document.querySelectorAll('tr.failed').length") == 1
    quiet(browser, usual)


@in_browser
def test_a_click_on_a_heading_sorts(browser: Browser, usual: Path) -> None:
    browser.open(usual)
    assert column(browser, 2) == sorted(column(browser, 2))  # by delta_m at first
    browser.click("#results-table thead tr:last-child th:nth-child(3) button")
    assert column(browser, 3) == sorted(column(browser, 3), reverse=True)  # delta_p: higher is better
    assert browser.evaluate("document.querySelector('th[aria-sort]').ariaSort") == "descending"
    browser.click("#results-table thead tr:last-child th:nth-child(3) button")
    assert column(browser, 3) == sorted(column(browser, 3))
    assert methods(browser)[-1] == "broken"  # what is not known comes last, either way
    assert browser.evaluate("document.querySelectorAll('th[aria-sort]').length") == 1


@in_browser
def test_the_keyboard_sorts_and_puts_a_method_in_colour(browser: Browser, usual: Path) -> None:
    browser.open(usual)
    browser.evaluate("document.querySelector('#results-table thead button').focus()")
    browser.press("Enter")
    assert methods(browser) == [*sorted(methods(browser)[:-1]), "broken"]
    browser.press(" ")
    assert browser.evaluate("document.querySelector('th[aria-sort]').ariaSort") == "descending"
    browser.evaluate("document.querySelector('.pick').focus()")
    before = browser.evaluate("document.querySelectorAll('#pins li').length")
    browser.press("Enter")
    assert browser.evaluate("document.querySelector('.pick').ariaPressed") == "false"
    assert browser.evaluate("document.querySelectorAll('#pins li').length") == before - 1
    quiet(browser, usual)


@in_browser
def test_a_chart_shows_values_by_pointer_and_by_keyboard(browser: Browser, usual: Path) -> None:
    browser.open(usual)
    browser.hover("#quality-cost .dot")
    shown = browser.evaluate("document.getElementById('tip').innerText")
    assert "ms per step" in shown
    browser.evaluate("document.querySelector('#curves svg.chart').focus()")
    browser.press("ArrowRight")
    browser.press("ArrowRight")
    assert "epoch 2" in browser.evaluate("document.getElementById('live').textContent")
    browser.press("Escape")
    assert browser.evaluate("document.getElementById('tip').hidden")


@in_browser
def test_numbers_are_rounded_as_elsewhere(browser: Browser, usual: Path) -> None:
    browser.open(usual)
    for value in (6.125, 6.375, -0.5, 0.5, 1.5, 2.675, 12345678.5, -0.0001, 0.99995):
        for digits in (0, 2, 4):
            text = f"{value:.{digits}f}"
            assert browser.evaluate(f"fixed({value}, {digits})") == (
                text.replace("-", "") if float(text) == 0 else text
            )


@in_browser
def test_values_are_there_as_tables(browser: Browser, usual: Path) -> None:
    browser.open(usual)
    browser.click("#quality-cost summary")
    rows = "document.querySelectorAll('#quality-cost .values tbody tr').length"
    assert browser.evaluate(f"new Promise(done => setTimeout(() => done({rows}), 100))") == 4
    assert browser.evaluate("[...document.querySelectorAll('table')].every(n => n.caption && n.tHead)")
    levels = "[...document.querySelectorAll('h1, h2, h3, h4')].map(n => Number(n.tagName[1]))"
    found = browser.evaluate(levels)
    assert found[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(found))


@in_browser
def test_choosing_and_finding(browser: Browser, usual: Path) -> None:
    browser.open(usual)
    before = browser.evaluate("document.querySelector('#curves svg.chart').outerHTML")
    change = "node.dispatchEvent(new Event('change'))"
    browser.evaluate(f"{{const node = document.querySelector('#curves select'); node.selectedIndex = 1; {change}}}")
    assert browser.evaluate("document.querySelector('#curves svg.chart').outerHTML") != before
    browser.evaluate("{const node = document.getElementById('find'); node.value = 'TURNED';"
                     "node.dispatchEvent(new Event('input'))}")  # fmt: skip
    assert sorted(methods(browser)) == ["+turned", "plain+turned"]
    browser.click("#intervals")
    assert browser.evaluate("getComputedStyle(document.querySelector('.interval')).display") == "block"
    quiet(browser, usual)


@in_browser
def test_colours_have_enough_contrast(browser: Browser, usual: Path) -> None:
    """WCAG AA: 4.5 to 1 for text, on both kinds of background, light and dark."""
    script = """(() => {
      const context = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
      const light = (name) => {
        const probe = document.createElement('i');
        probe.style.color = `var(--${name})`;
        document.body.append(probe);
        context.fillStyle = getComputedStyle(probe).color;
        context.fillRect(0, 0, 1, 1);
        probe.remove();
        const [r, g, b] = [...context.getImageData(0, 0, 1, 1).data].map((v) => v / 255)
          .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
      const found = {};
      for (const text of ['ink', 'muted', 'accent', 'better', 'worse'])
        found[text] = Math.min(...['paper', 'panel'].map((back) => ratio(light(text), light(back))));
      for (const line of ['c0', 'c1', 'c2', 'c3', 'c4', 'c5']) found[line] = ratio(light(line), light('paper'));
      return found;
    })()"""
    for dark in (False, True):
        browser.open(usual, dark=dark)
        found = browser.evaluate(script)
        assert [name for name, ratio in found.items() if ratio < (3 if name[1:].isdigit() else 4.5)] == [], found


@in_browser
def test_hostile_names_are_text(browser: Browser, tmp_path: Path) -> None:
    file = write(tmp_path, methods=HOSTILE, epochs=2, failed=["<b>failed</b>"])
    browser.open(file, 360)
    assert {"<img src=x onerror=alert(1)>", "<b>failed</b>"} <= set(methods(browser))
    assert browser.evaluate("document.querySelectorAll('img, iframe, object').length") == 0
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    assert browser.evaluate("document.documentElement.scrollWidth") <= 360
    assert not any(event["method"] == "Page.javascriptDialogOpening" for event in browser.events)
    quiet(browser, file)


@in_browser
@pytest.mark.parametrize("baseline", [True, False])
def test_little_data_draws_too(browser: Browser, tmp_path: Path, baseline: bool) -> None:
    report, _ = synthetic_runs.build(tmp_path, methods=["plain"], baseline=baseline, seeds=(0,), epochs=1)
    report["notes"] = []
    file = tmp_path / "report.html"
    write_page(report, [], file)
    browser.open(file)
    assert "plain" in methods(browser)
    quiet(browser, file)
    report["rows"] = [{"method": "gone", "seeds": [], "tasks": {}, "delta_m": None, "delta_p": None, "cost": {}}]
    report["rows"][0] |= {"mean_rank": None, "failed": [{"seed": 0, "error": "no"}, {"seed": 1, "error": "no"}]}
    write_page(report, [], file)
    browser.open(file)
    assert browser.evaluate("document.querySelectorAll('tr.failed').length") == 2
    quiet(browser, file)


@in_browser
def test_published_results_are_a_table(browser: Browser, tmp_path: Path) -> None:
    _, runs = synthetic_runs.build(tmp_path, epochs=2)
    report = compare_runs(read_runs(runs), None)
    cell = {"published": 0.8, "ours": 0.79, "gap": -0.01, "unit": "fraction", "higher_is_better": True}
    delta = {"published": -1.0, "ours": 0.5, "gap": 1.5, "baseline": "single_task"}
    entry = {"method": "plain", "name": "Plain", "source": "a paper", "note": None, "delta": delta}
    table = {"name": "t", "title": "A table", "convention": "delta_m", "notes": ["other splits"]}
    report["published"] = table | {"rows": [entry | {"tasks": {"income": {"auroc": cell}}}]}
    file = tmp_path / "report.html"
    write_page(report, runs, file)
    browser.open(file)
    assert browser.evaluate("document.querySelectorAll('#published tbody tr').length") == 2
    assert "other splits" in browser.evaluate("document.getElementById('published').innerText")
    quiet(browser, file)


@in_browser
def test_forty_methods(browser: Browser, tmp_path: Path) -> None:
    methods = [f"method_{number:02}" for number in range(40)]
    file = write(tmp_path, methods=methods, seeds=(0,), epochs=50)
    browser.open(file, 360)
    assert browser.evaluate("document.querySelectorAll('#curves path.line').length") == 41
    assert browser.evaluate("document.querySelectorAll('#curves path.line.grey').length") == 36
    quiet(browser, file)


@in_browser
def test_it_prints(browser: Browser, usual: Path) -> None:
    browser.open(usual)
    assert browser.pdf().startswith(b"%PDF")
    assert not browser.evaluate("document.documentElement.classList.contains('printing')")
    quiet(browser, usual)
