"""A real browser for tests: Chromium of the system, without a network."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start it, or skip the test where there is none."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def page_of(
    browser: Browser, *, width: int = 1100, dark: bool = False, allowed: str = "file:"
) -> Iterator[tuple[Page, list[str]]]:
    """Open a page; gives it, and the addresses that it asked for and did not get: all that do not begin with `allowed`."""
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light")
    asked: list[str] = []
    page = context.new_page()
    page.on("pageerror", lambda error: asked.append(f"script error: {error}"))

    def watch(route: object) -> None:
        address = route.request.url  # type: ignore[attr-defined]
        if address.startswith((allowed, "data:", "blob:")):
            route.continue_()  # type: ignore[attr-defined]
        else:
            asked.append(address)
            route.abort()  # type: ignore[attr-defined]

    page.route("**/*", watch)
    try:
        yield page, asked
    finally:
        context.close()
