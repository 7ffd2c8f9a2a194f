"""The documentation as a site, in a real browser, from a folder."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from tests.chromium import chromium, page_of

ROOT = Path(__file__).parents[2]
WIDE = ["comparison.html", "results/engines-cpu.html", "training.html", "architecture.html", "how-to/docker.html"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    line = [Path(sys.executable).with_name("mkdocs"), "build", "--strict", "--quiet", "--site-dir", folder]
    done = subprocess.run(
        line, cwd=ROOT, check=False, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.mark.slow
def test_the_search_works_from_a_folder(site: Path, browser: Browser) -> None:
    with page_of(browser) as (page, asked):
        page.goto((site / "index.html").as_uri())
        page.fill(".md-search__input", "inconclusive")
        expect(page.locator(".md-search-result__item").first).to_be_visible(timeout=20_000)
        assert not asked


@pytest.mark.slow
@pytest.mark.parametrize(("name", "width"), [*((name, 390) for name in WIDE), (WIDE[0], 1280)])
def test_what_is_wide_can_be_scrolled_to(site: Path, browser: Browser, name: str, width: int) -> None:
    with page_of(browser, width=width) as (page, asked):
        page.goto((site / name).as_uri())
        page.wait_for_load_state("networkidle")
        assert page.evaluate("document.scrollingElement.scrollWidth <= innerWidth")
        cut = page.evaluate(
            """() => {
                 const scrolls = at => at.tagName !== "ARTICLE" && (scrolled(at) || scrolls(at.parentElement))
                 const scrolled = at => at.scrollWidth > at.clientWidth + 1 && at.clientWidth > 0
                   && getComputedStyle(at).overflowX === "auto"
                 return [...document.querySelectorAll("article :is(table, pre, img)")]
                   .filter(element => element.getBoundingClientRect().right > innerWidth && !scrolls(element))
                   .map(element => element.outerHTML.slice(0, 80))
               }"""
        )
        assert cut == []
        assert not asked


def test_no_page_names_a_script_of_another_place(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text, page
        assert 'rel="stylesheet" href="http' not in text, page
        assert 'class="mermaid"' not in text, page  # the theme would fetch its library
