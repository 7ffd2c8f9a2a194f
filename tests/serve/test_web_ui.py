"""The page at `/`, in Chromium against a real server, by keyboard alone, too; and the golden images that it may show."""

import contextlib
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from playwright.sync_api import Browser, expect

from ddcat.bundle import Bundle
from ddcat_serve.http.web_ui import scale_perturbation
from tests.bundles import CLASSES, small_graph, with_golden
from tests.chromium import chromium, page_of
from tests.serve.payloads import as_labels, as_png
from tests.serve.processes import server


@pytest.fixture
def shown(tmp_path: Path, oracle: Callable, picture: np.ndarray) -> Bundle:
    return with_golden(tmp_path / "shown.bundle", oracle, picture)


@given(arrays(np.uint8, (2, 3, 3)), arrays(np.uint8, (2, 3, 3)), st.floats(0, 1))
def test_a_weaker_attack_lies_between(clean: np.ndarray, attacked: np.ndarray, strength: float) -> None:
    found = scale_perturbation(clean, attacked, strength).astype(int)
    change, most = found - clean, attacked.astype(int) - clean
    assert (np.abs(change) <= strength * np.abs(most) + 1e-6).all()
    assert (np.abs(change) > strength * np.abs(most) - 1 - 1e-6).all()
    assert (change * most >= 0).all()
    np.testing.assert_array_equal(scale_perturbation(clean, attacked, 0.0), clean)
    np.testing.assert_array_equal(scale_perturbation(clean, attacked, 1.0), attacked)


def test_golden_images_are_shown_by_demonstrations_alone(
    shown: Bundle, serving: Callable[..., httpx.Client], picture: np.ndarray
) -> None:
    client = serving(shown.path)
    assert client.get("/v1/models").json()["models"][0]["examples"] == 0
    response = client.get("/v1/models/small/examples/0")
    assert (response.status_code, "--demo" in response.json()["error"]) == (404, True)
    client = serving(shown.path, demo=True)
    (about,) = client.get("/v1/models").json()["models"]
    assert (about["examples"], [entry["name"] for entry in about["classes"]]) == (2, list(CLASSES.names))
    found = np.asarray(Image.open(io.BytesIO(client.get("/v1/models/small/examples/0?strength=0.5").content)))
    np.testing.assert_array_equal(picture.astype(int) - found, np.minimum(picture, 20) // 2)
    for example, status in (("2", 404), ("0?strength=2", 400), ("x", 400)):
        assert client.get(f"/v1/models/small/examples/{example}").status_code == status


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ddcat.engines.onnxruntime import run_once  # noqa: PLC0415

    picture = np.random.default_rng(0).integers(20, 148, (37, 53, 3)).astype(np.uint8)

    def oracle(images: np.ndarray) -> tuple[np.ndarray, None]:
        return run_once(small_graph(), images)["labels"], None

    folder = tmp_path_factory.mktemp("page")
    for name in ("one", "two"):
        with_golden(folder / name, oracle, picture)
    with server(f"first={folder / 'one'}", f"second={folder / 'two'}", "--demo") as (_, found):
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


def wait(page: Any, text: str = "round trip") -> None:
    expect(page.locator(".result")).to_have_count(2)
    for result in page.locator(".result").all():
        expect(result).to_contain_text(text)


def pixel(page: Any, x: int = 0, y: int = 0) -> tuple[int, ...]:
    """A pixel of the first canvas, RGB."""
    script = f"[...document.querySelector('canvas').getContext('2d').getImageData({x}, {y}, 1, 1).data]"
    return tuple(page.evaluate(script)[:3])


def labels_of(address: str, content: bytes) -> np.ndarray:
    return as_labels(httpx.post(f"{address}/v1/segment?model=first", content=content).content)


@pytest.fixture
def file(tmp_path: Path, picture: np.ndarray) -> Path:
    path = tmp_path / "my image.png"
    path.write_bytes(as_png(picture))
    return path


def test_drop_an_image_and_see_masks(browser: Browser, address: str, tmp_path: Path, file: Path) -> None:
    for width, dark in ((1100, False), (1100, True), (360, False)):
        with page_of(browser, width=width, dark=dark, allowed=address) as (page, asked):
            page.goto(address)
            wait(page)
            page.set_input_files("#file", file)
            wait(page, "53 x 37, round trip")
            assert page.locator(".model h2").all_inner_texts() == ["first", "second"]
            assert page.locator(".model .badge").first.inner_text() == "not evaluated"
            size = page.evaluate("(() => { const c = document.querySelector('canvas'); return [c.width, c.height] })()")
            assert size == [53, 37]
            page.locator("#opacity").fill("1")
            assert pixel(page) in CLASSES.palette  # the mask alone
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            folder = Path(os.environ.get("DDCAT_SCREENSHOTS") or tmp_path)
            page.screenshot(path=folder / f"page-{width}-{'dark' if dark else 'light'}.png", full_page=True)
            assert not asked  # nothing from elsewhere


def test_the_first_sight_of_a_demonstration_is_an_example_without_an_attack(browser: Browser, address: str) -> None:
    with page_of(browser, allowed=address) as (page, _):
        faults: list[str] = []
        page.on("response", lambda response: faults.append(response.url) if response.status >= 400 else None)
        page.on("console", lambda message: faults.append(message.text))
        page.goto(address)
        wait(page)
        assert page.locator("#example").input_value() == "0"
        assert page.locator("#strong").inner_text() == "none"
        assert "Agreement" not in page.locator(".result").first.inner_text()
        assert page.locator("a").get_attribute("href") == "openapi.json"
        assert not faults  # the icon is in the page


def test_an_attack_is_seen_while_the_slider_moves(browser: Browser, address: str) -> None:
    with page_of(browser, allowed=address) as (page, _):
        page.goto(address)
        wait(page)
        # a slider that is dragged: no change, which comes when it is let go
        page.evaluate("const s = document.getElementById('strength'); s.value = 1; s.dispatchEvent(new Event('input'))")
        wait(page, "Agreement with the clean prediction: ")
        assert page.locator("#strong").inner_text() == "100 %"
        page.locator("#strength").fill("0")
        for result in page.locator(".result").all():
            expect(result).not_to_contain_text("Agreement")


def test_by_keyboard_alone(browser: Browser, address: str) -> None:
    with page_of(browser, allowed=address) as (page, asked):
        page.goto(address)
        wait(page)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "A"
        for name in ("file", "example", "strength", "opacity", "original"):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.id") == name
            if name == "strength":
                for _ in range(8):
                    page.keyboard.press("ArrowRight")
                wait(page, "Agreement with the clean prediction")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "CANVAS"
        expect(page.locator(".under").first).to_contain_text(" at 26, 18")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Shift+ArrowUp")
        expect(page.locator(".under").first).to_contain_text(" at 27, 17")
        for text in ("Download mask", "Copy curl"):
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.textContent") == text
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        page.keyboard.press("Enter")
        details = page.locator("details[open]").inner_text()
        assert "the gate has not tested this bundle" in details
        assert "Attack on the examples: darkness." in details
        assert not asked


@pytest.mark.parametrize("event", ["pointermove", "pointerdown"])  # a mouse, a finger
def test_the_class_under_the_pointer_is_named(browser: Browser, address: str, file: Path, event: str) -> None:
    labels = labels_of(address, file.read_bytes())
    with page_of(browser, allowed=address) as (page, _):
        page.goto(address)
        page.set_input_files("#file", file)
        wait(page, "53 x 37")
        box = page.locator("canvas").first.bounding_box()
        for x, y in ((0, 0), (52, 36), (7, 30)):
            at = {"clientX": box["x"] + (x + 0.5) * box["width"] / 53, "clientY": box["y"] + (y + 0.5) * box["height"] / 37}
            page.locator("canvas").first.dispatch_event(event, at)
            assert page.locator(".under").first.inner_text() == f"{CLASSES.names[labels[y, x]]} at {x}, {y}"


def test_shares_original_mask_and_command(browser: Browser, address: str, file: Path, picture: np.ndarray) -> None:
    labels = labels_of(address, file.read_bytes())
    with page_of(browser, allowed=address) as (page, _):
        page.goto(address)
        page.set_input_files("#file", file)
        wait(page, "53 x 37")
        counts = np.bincount(labels.ravel(), minlength=4)
        assert page.locator(".legend").first.locator("li").all_inner_texts() == [
            f"{CLASSES.names[label]} {100 * counts[label] / labels.size:.1f} %" for label in np.argsort(-counts, kind="stable")
        ]
        page.locator("#original").click()
        assert pixel(page, 5, 6) == tuple(picture[6, 5])
        assert page.locator("#original").get_attribute("aria-pressed") == "true"
        page.locator("#original").click()
        assert pixel(page, 5, 6) != tuple(picture[6, 5])
        with page.expect_download() as download:
            page.get_by_text("Download mask").first.click()
        assert download.value.suggested_filename == "my image-first.png"
        np.testing.assert_array_equal(as_labels(download.value.path().read_bytes()), labels)
        for example in (False, True):
            if example:
                page.locator("#example").select_option("1")
                wait(page, "53 x 37, round trip")
                labels = labels_of(address, httpx.get(f"{address}/v1/models/first/examples/1").content)
            page.locator(".actions").first.locator("button").nth(1).click()
            command = page.locator("code").first.inner_text()
            found = subprocess.run(command, shell=True, cwd=file.parent, capture_output=True, check=False)
            assert found.returncode == 0, found.stderr
            np.testing.assert_array_equal(as_labels((file.parent / "mask.png").read_bytes()), labels)


def test_a_refusal_stands_at_the_top_and_no_mask_is_left(browser: Browser, address: str, tmp_path: Path, file: Path) -> None:
    small, bad = tmp_path / "small.png", tmp_path / "bad.png"
    small.write_bytes(as_png(np.zeros((3, 3, 3), np.uint8)))
    bad.write_bytes(b"no image")
    with page_of(browser, allowed=address) as (page, _):
        page.goto(address)
        for refused, message in (
            (small, "Image is 3 x 3; this model needs at least 8 x 8"),
            (bad, "neither JPEG, PNG nor WebP"),
        ):
            page.set_input_files("#file", file)
            wait(page, "53 x 37")
            assert page.locator("#trouble").is_hidden()
            page.set_input_files("#file", refused)
            expect(page.locator("#trouble")).to_contain_text(message)
            assert page.locator("#trouble").inner_text().count(message) == 1  # of both models alike
            assert page.locator("#trouble").bounding_box()["y"] < page.locator("#file").bounding_box()["y"]
            assert page.locator("canvas:visible, .legend li").count() == 0


@contextlib.contextmanager
def held(page: Any, pattern: str) -> Iterator[None]:
    """Hold the requests to some addresses until the block ends."""
    routes: list[Any] = []
    hold = lambda route: routes.append(route)  # noqa: E731, PLW0108 -- a method is another one each time
    page.route(pattern, hold)
    yield
    page.unroute(pattern, hold)
    for route in routes:
        route.continue_()


def test_a_running_request_is_shown_at_once(browser: Browser, address: str, tmp_path: Path, file: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no image")
    with page_of(browser, allowed=address) as (page, _):
        page.goto(address)
        wait(page)
        page.set_input_files("#file", bad)
        expect(page.locator("#trouble")).to_be_visible()
        with held(page, "**/v1/segment?*"):
            page.set_input_files("#file", file)
            wait(page, "Segmenting ...")
            assert page.locator("#trouble").is_hidden()
        wait(page, "53 x 37")


def test_an_image_chosen_before_the_models_are_listed_is_kept(browser: Browser, address: str, file: Path) -> None:
    with page_of(browser, allowed=address) as (page, _):
        with held(page, "**/v1/models"):
            page.goto(address)
            page.set_input_files("#file", file)
            page.wait_for_function("state.file !== null")
        wait(page, "53 x 37, round trip")
        assert page.locator("#example").input_value() == ""
        with page.expect_download() as download:
            page.get_by_text("Download mask").first.click()
        assert download.value.suggested_filename == "my image-first.png"


def test_a_server_with_a_key_asks_for_it(browser: Browser, tmp_path: Path, oracle: Callable, picture: np.ndarray) -> None:
    bundle = with_golden(tmp_path / "locked", oracle, picture)
    with (
        server(bundle.path, "--api-key", "a long secret") as (_, address),
        page_of(browser, allowed=address) as (page, _),
    ):
        page.goto(address)
        page.wait_for_selector("#locked:not([hidden])")
        assert "API key" in page.locator("#trouble").inner_text()
        page.locator("#key").fill("a long secret")
        page.locator("#unlock").click()
        page.wait_for_selector(".model")
        assert page.locator("#locked").is_hidden()
