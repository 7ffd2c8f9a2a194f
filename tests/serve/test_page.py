"""The page at `/`, in Chromium against a real server, by keyboard alone, too; and the golden images that it may show."""

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from playwright.sync_api import expect

from ddcat.bundle import Bundle
from ddcat_serve.app import create_app
from ddcat_serve.models import load_models
from ddcat_serve.page import weakened
from ddcat_serve.settings import Settings
from tests.chromium import chromium, page_of
from tests.serve.bundles import CLASSES, small_graph, with_golden
from tests.serve.pictures import as_png
from tests.serve.processes import server


@pytest.fixture
def shown(tmp_path: Path, oracle: Callable, picture: np.ndarray) -> Bundle:
    return with_golden(tmp_path / "shown.bundle", oracle, picture)


@given(arrays(np.uint8, (2, 3, 3)), arrays(np.uint8, (2, 3, 3)), st.floats(0, 1))
def test_a_weaker_attack_lies_between(clean: np.ndarray, attacked: np.ndarray, strength: float) -> None:
    found = weakened(clean, attacked, strength).astype(int)
    change, most = found - clean, attacked.astype(int) - clean
    assert (np.abs(change) <= strength * np.abs(most) + 1e-6).all()
    assert (np.abs(change) > strength * np.abs(most) - 1 - 1e-6).all()
    assert (change * most >= 0).all()
    np.testing.assert_array_equal(weakened(clean, attacked, 0.0), clean)
    np.testing.assert_array_equal(weakened(clean, attacked, 1.0), attacked)


def test_golden_images_are_shown_by_demonstrations_alone(
    shown: Bundle, client_of: Callable[[FastAPI], httpx.Client], picture: np.ndarray
) -> None:
    for demo in (False, True):
        settings = Settings(demo=demo)
        with load_models([shown.path], settings=settings, threads=1) as models:
            client = client_of(create_app(models, settings))
            (about,) = client.get("/v1/models").json()["models"]
            assert about["examples"] == 2 * demo
            assert [entry["name"] for entry in about["classes"]] == list(CLASSES.names)
            response = client.get("/v1/models/small/examples/0?strength=0.5")
            if demo:
                found = np.asarray(Image.open(io.BytesIO(response.content)))
                np.testing.assert_array_equal(picture.astype(int) - found, np.minimum(picture, 20) // 2)
                assert client.get("/v1/models/small/examples/2").status_code == 404
                assert client.get("/v1/models/small/examples/0?strength=2").status_code == 400
                assert client.get("/v1/models/small/examples/x").status_code == 400
            else:
                assert response.status_code == 404
                assert "--demo" in response.json()["error"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ddcat_serve.engines.onnxruntime import run_once  # noqa: PLC0415

    picture = np.random.default_rng(0).integers(20, 148, (37, 53, 3)).astype(np.uint8)

    def oracle(images: np.ndarray) -> tuple[np.ndarray, None]:
        return run_once(small_graph(), images)["labels"], None

    folder = tmp_path_factory.mktemp("page")
    for name in ("one", "two"):
        with_golden(folder / name, oracle, picture)
    with server(f"first={folder / 'one'}", f"second={folder / 'two'}", "--demo") as (_, found):
        yield found


def wait(page: Any) -> None:
    expect(page.locator(".told")).to_have_count(2)
    for told in page.locator(".told").all():
        expect(told).to_contain_text("ms from here")


def test_drop_an_image_and_see_masks(address: str, tmp_path: Path, picture: np.ndarray) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(as_png(picture))
    with chromium() as browser:
        for width, dark in ((1100, False), (1100, True), (360, False)):
            with page_of(browser, width=width, dark=dark, allowed=address) as (page, asked):
                page.goto(address)
                page.set_input_files("#file", file)
                wait(page)
                assert page.locator(".model h2").all_inner_texts() == ["first", "second"]
                assert page.locator(".told").first.inner_text().startswith("53 x 37, ")
                assert set(page.locator("#legend li").all_inner_texts()) <= set(CLASSES.names)
                assert page.locator("#legend li").count() > 1
                assert page.locator(".model .badge").first.inner_text() == "none"
                size = page.evaluate("(() => { const c = document.querySelector('canvas'); return [c.width, c.height] })()")
                assert size == [53, 37]
                page.locator("#opacity").fill("1")
                colour = page.evaluate("[...document.querySelector('canvas').getContext('2d').getImageData(0, 0, 1, 1).data]")
                assert tuple(colour[:3]) in CLASSES.palette  # the mask alone
                assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
                folder = Path(os.environ.get("DDCAT_SCREENSHOTS") or tmp_path)
                page.screenshot(path=folder / f"page-{width}-{'dark' if dark else 'light'}.png", full_page=True)
                assert not asked  # nothing from elsewhere


def test_by_keyboard_alone(address: str) -> None:
    with chromium() as browser, page_of(browser, allowed=address) as (page, asked):
        page.goto(address)
        page.wait_for_selector("#chooser:not([hidden])")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "file"
        assert page.evaluate("document.activeElement.type") == "file"  # which a browser opens by a key
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "example"
        page.keyboard.press("e")  # the first example
        wait(page)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "strength"
        for _ in range(8):
            page.keyboard.press("ArrowRight")
        for told in page.locator(".told").all():
            expect(told).to_contain_text("as without attack")
        assert page.locator("#strong").inner_text() == "100 % of each model's own"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "opacity"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        page.keyboard.press("Enter")
        assert "has not been judged" in page.locator("details[open]").inner_text()
        assert not asked


def test_an_image_that_is_refused_says_why(address: str, tmp_path: Path) -> None:
    file = tmp_path / "small.png"
    file.write_bytes(as_png(np.zeros((3, 3, 3), np.uint8)))
    with chromium() as browser, page_of(browser, allowed=address) as (page, _):
        page.goto(address)
        page.set_input_files("#file", file)
        page.wait_for_selector(".error.told")
        assert "Image is 3 x 3; this model needs at least 8 x 8" in page.locator(".error.told").first.inner_text()


def test_a_server_with_a_key_asks_for_it(tmp_path: Path, oracle: Callable, picture: np.ndarray) -> None:
    bundle = with_golden(tmp_path / "locked", oracle, picture)
    with (
        server(bundle.path, "--api-key", "a long secret") as (_, address),
        chromium() as browser,
        page_of(browser, allowed=address) as (page, _),
    ):
        page.goto(address)
        page.wait_for_selector("#locked:not([hidden])")
        assert "API key" in page.locator("#trouble").inner_text()
        page.locator("#key").fill("a long secret")
        page.locator("#unlock").click()
        page.wait_for_selector(".model")
        assert page.locator("#locked").is_hidden()
