"""The gate's report and the comparison, looked at in Chromium: nothing is loaded from elsewhere, and a phone can read them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from ddcat.passport import Finding
from ddcat_bench.compare.comparison import compare
from ddcat_bench.compare.report import compare_html
from ddcat_bench.gate.report import gate_html
from tests.bench.gates import made_gate
from tests.chromium import chromium, page_of


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = Path(os.environ.get("DDCAT_SCREENSHOTS") or tmp_path_factory.mktemp("reports"))
    folder.mkdir(exist_ok=True)
    bad = Finding(
        name="mIoU, BIM, n = 3", verdict="refuse", found="24.00 against 29.00: -5.00 (-5.20 to -4.80) points",
        limit="within 1 points", reason="the 90 % interval of the difference lies beyond -1: it is worse",
    )  # fmt: skip
    good = bad.model_copy(update={"name": "latency", "verdict": "pass", "reason": "as quick as it should be"})
    refused = made_gate("refused", attacked=24.0, verdict="refuse", findings=(good, bad))
    pages = {"gate": gate_html(refused), "compare": compare_html(compare({"good": made_gate(), "bad": refused}))}
    for name, page in pages.items():
        (folder / f"{name}.html").write_text(page)
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


def fits(page: Page) -> bool:
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


@pytest.mark.parametrize("name", ["gate", "compare"])
def test_reports_in_light_dark_and_on_a_phone(reports: dict[str, Path], browser: Browser, name: str) -> None:
    grounds = []
    for width, dark in ((1100, False), (1100, True), (360, False)):
        with page_of(browser, width=width, dark=dark) as (page, asked):
            page.goto(reports[name].as_uri())
            assert fits(page)
            grounds.append(page.evaluate("getComputedStyle(document.body).backgroundColor"))
            picture = reports[name].with_name(f"{name}-{width}-{'dark' if dark else 'light'}.png")
            page.screenshot(path=picture, full_page=True)
            assert picture.stat().st_size > 10_000
        assert not asked
    assert grounds[0] == grounds[2] != grounds[1]


def test_the_verdict_comes_first_and_tables_sort_by_keyboard(reports: dict[str, Path], browser: Browser) -> None:
    with page_of(browser) as (page, _):
        page.goto(reports["gate"].as_uri())
        assert page.locator("h1").inner_text() == "Refused: robustness is below its limits. Latency passed."
        assert page.locator(".verdict .badge").inner_text() == "refuse"
        assert page.locator("tbody tr").first.locator(".badge").inner_text() == "refuse"  # what was refused, above what passed
        assert page.locator(".verdict li").first.inner_text().startswith("mIoU, BIM, n = 3: ")
        table = page.locator("table.sortable", has_text="pole (rare)")
        button = table.locator("th button").nth(1)
        for order in (["0.50%", "99.50%"], ["99.50%", "0.50%"]):
            button.focus()
            page.keyboard.press("Enter")
            assert table.locator("tbody tr td:nth-child(2)").all_inner_texts() == order


def test_what_has_no_figure_is_sorted_last_either_way(reports: dict[str, Path], browser: Browser) -> None:
    with page_of(browser) as (page, _):
        page.goto(reports["gate"].as_uri())
        table = page.locator("table.sortable", has_text="pole (rare)")
        for _order in ("ascending", "descending"):
            table.locator("th button").nth(2).click()
            assert table.locator("tbody tr td:nth-child(3)").all_inner_texts() == ["38.00", "-"]


def test_on_a_phone_each_row_is_a_card_that_names_its_figures(reports: dict[str, Path], browser: Browser) -> None:
    for width, cards in ((390, True), (700, False)):
        with page_of(browser, width=width) as (page, _):
            page.goto(reports["gate"].as_uri())
            assert page.locator("table.cards thead").first.is_visible() is not cards
            cell = page.locator("td[data-label=limit]").first
            label = cell.evaluate("(cell) => getComputedStyle(cell, '::before').content")
            assert (label == '"limit"') is cards
            right = "[...document.querySelectorAll('td')].map((cell) => cell.getBoundingClientRect().right)"
            assert not cards or max(page.evaluate(right)) <= width


def test_a_bar_that_leaves_its_drawing_is_marked(reports: dict[str, Path], browser: Browser) -> None:
    with page_of(browser) as (page, _):
        page.goto(reports["gate"].as_uri())
        marked = {
            row.locator("td").first.inner_text(): row.locator("svg .leaves").count()
            for row in page.locator("tr:has(svg)").all()
        }
        assert marked == {"clean": 0, "BIM, n = 3": 0, "strongest at 8/255": 1}
        assert page.locator("svg text", has_text="-0.1").count() == 2  # the limits have their sign


def test_nothing_in_a_drawing_lies_beyond_its_edge(reports: dict[str, Path], browser: Browser) -> None:
    beyond = """[...document.querySelectorAll("svg")].filter((svg) => [...svg.querySelectorAll("circle, text")].some((mark) =>
        mark.getBoundingClientRect().left < svg.getBoundingClientRect().left - 0.5)).length"""
    with page_of(browser) as (page, _):
        page.goto(reports["gate"].as_uri())
        assert page.locator("svg").count() > 0
        assert page.evaluate(beyond) == 0
