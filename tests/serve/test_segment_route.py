"""`POST /v1/segment`: image files in, masks out, in the form that is accepted."""

import base64
import io
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from ddcat.bundle import Bundle, write_bundle
from ddcat.classes import colourise
from ddcat.preprocess import FileRule, Resize, preprocess, restore
from ddcat_serve.http.app import create_app
from ddcat_serve.http.decoding import decode
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import Settings
from tests.bundles import CLASSES, small_graph
from tests.serve.payloads import as_labels, as_png, refused


def test_a_png_comes_back_as_the_engine_s_labels(
    client: httpx.Client, bundle: Bundle, oracle: Callable, picture: np.ndarray
) -> None:
    response = client.post("/v1/segment", content=as_png(picture), headers={"Content-Type": "image/png"})
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-ddcat-model"] == "small"
    assert response.headers["x-ddcat-bundle"] == bundle.digest
    np.testing.assert_array_equal(as_labels(response.content), oracle(picture[None])[0][0])


def test_a_jpeg_comes_back_as_the_labels_of_its_pixels(client: httpx.Client, oracle: Callable, picture: np.ndarray) -> None:
    content = simplejpeg.encode_jpeg(picture)
    response = client.post("/v1/segment", content=content, headers={"Content-Type": "image/jpeg"})
    pixels = decode(content, max_pixels=10_000)
    np.testing.assert_array_equal(as_labels(response.content), oracle(pixels[None])[0][0])


def test_a_form_with_one_file_is_answered_by_its_mask(client: httpx.Client, oracle: Callable, picture: np.ndarray) -> None:
    response = client.post("/v1/segment", files={"image": ("x.png", as_png(picture), "image/png")})
    assert response.status_code == 200, response.text
    np.testing.assert_array_equal(as_labels(response.content), oracle(picture[None])[0][0])


@pytest.mark.parametrize("accept", ["image/png", "application/json"])
def test_a_form_with_several_files_is_answered_by_a_list(
    client: httpx.Client, oracle: Callable, picture: np.ndarray, accept: str
) -> None:
    sent = [picture, picture[:20], picture[:, :31]]
    files = [("image", (f"{place}.png", as_png(image), "image/png")) for place, image in enumerate(sent)]
    response = client.post("/v1/segment", files=files, headers={"Accept": accept})
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    assert [(found["filename"], found["size"]) for found in results] == [
        (f"{place}.png", list(image.shape[:2])) for place, image in enumerate(sent)
    ]
    for image, found in zip(sent, results, strict=True):
        labels = oracle(image[None])[0][0]
        if accept == "image/png":
            np.testing.assert_array_equal(as_labels(base64.b64decode(found["data"])), labels)
        else:
            assert {entry["id"]: entry["area"] for entry in found["classes"]} == {
                label: int((labels == label).sum()) for label in np.unique(labels).tolist()
            }


def test_the_response_is_the_accepted_representation(client: httpx.Client, oracle: Callable, picture: np.ndarray) -> None:
    labels = oracle(picture[None])[0][0]
    answers = {
        accept: client.post("/v1/segment", content=as_png(picture), headers={"Accept": accept})
        for accept in (
            "application/octet-stream", "application/json", "image/png;view=labels", "image/png;view=overlay",
            "image/png;view=confidence",
        )
    }  # fmt: skip
    raw, rle, grey, overlay, confidence = answers.values()
    assert grey.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(grey.content)) as opened:
        assert opened.mode == "L"
        np.testing.assert_array_equal(np.asarray(opened), labels)
    assert raw.headers["x-ddcat-shape"] == "37, 53"
    np.testing.assert_array_equal(np.frombuffer(raw.content, np.uint8).reshape(37, 53), labels)
    assert rle.json()["size"] == [37, 53]
    assert Image.open(io.BytesIO(overlay.content)).mode == "RGB"
    assert refused(confidence)[0] == 406  # the bundle gives none
    assert all(answer.headers["x-ddcat-passport"] == "none" for answer in (raw, rle, overlay))


def test_the_confidence_is_offered_if_the_bundle_has_it(
    build: Callable[..., Bundle], serving: Callable, picture: np.ndarray
) -> None:
    bundle = build(small_graph(logits=True, confidence=True), "ort")
    response = serving(bundle.path).post(
        "/v1/segment", content=as_png(picture), headers={"Accept": "image/png;view=confidence"}
    )
    assert response.status_code == 200, response.text
    assert Image.open(io.BytesIO(response.content)).size == (53, 37)


RULE = FileRule(orientation="exif", resize=Resize(to=40))


@pytest.fixture
def resizing(build: Callable[..., Bundle], serving: Callable, tmp_path: Path) -> httpx.Client:
    """A server of a bundle that turns images as EXIF says, and resizes them to 40 pixels, with room for 5000 pixels."""
    plain = build(small_graph(logits=True, confidence=True), "ort")
    changed = plain.manifest.model_copy(update={"preprocessing": plain.manifest.preprocessing.model_copy(update=dict(RULE))})
    path = write_bundle(tmp_path / "resizing", changed, plain.files).path
    client: httpx.Client = serving(path, max_pixels=5000)
    return client


def test_a_file_is_turned_and_resized_as_the_bundle_says_and_its_mask_back(
    resizing: httpx.Client, oracle: Callable, picture: np.ndarray
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", exif=exif)
    fed = preprocess(file.getvalue(), RULE)
    assert (fed.pixels.shape, fed.size) == ((40, 28, 3), (53, 37))  # 37 x 53 on its side
    expected = restore(oracle(fed.pixels[None])[0][0], (53, 37))
    sent = {"content": file.getvalue()}
    np.testing.assert_array_equal(as_labels(resizing.post("/v1/segment", **sent).content), expected)
    for view in ("labels", "confidence", "overlay"):
        response = resizing.post("/v1/segment", headers={"Accept": f"image/png;view={view}"}, **sent)
        with Image.open(io.BytesIO(response.content)) as opened:
            assert opened.size == (37, 53)
            if view == "overlay":  # half of the image itself, not of what was fed
                shown = np.asarray(opened).astype(int) - colourise(expected, CLASSES) // 2
                assert np.abs(shown - np.rot90(picture, -1) // 2).max() <= 1
    raw = resizing.post("/v1/segment", headers={"Accept": "application/octet-stream"}, **sent)
    assert raw.headers["x-ddcat-shape"] == "53, 37"
    rle = resizing.post("/v1/segment", headers={"Accept": "application/json"}, **sent).json()
    assert (rle["size"], sum(entry["area"] for entry in rle["classes"])) == ([53, 37], 53 * 37)
    several = resizing.post("/v1/segment", files=[("image", ("a", file.getvalue())), ("image", ("b", as_png(picture[:20])))])
    assert [found["size"] for found in several.json()["results"]] == [[53, 37], [20, 53]]


def test_a_file_that_was_preprocessed_is_left_alone(resizing: httpx.Client, oracle: Callable, picture: np.ndarray) -> None:
    response = resizing.post("/v1/segment?preprocessed=true", content=as_png(picture))
    np.testing.assert_array_equal(as_labels(response.content), oracle(picture[None])[0][0])


def test_images_that_become_too_large_or_too_small_are_refused(resizing: httpx.Client) -> None:
    small = [("image", (f"{place}", as_png(np.zeros((10, 10, 3), np.uint8)))) for place in range(4)]
    assert refused(resizing.post("/v1/segment", files=small)) == (
        413, "the images are resized to 6400 pixels; expected at most 5000 together"
    )  # fmt: skip
    assert refused(resizing.post("/v1/segment", content=as_png(np.zeros((2, 90, 3), np.uint8)))) == (
        400, "Image is 40 x 1 once it is resized from 90 x 2; this model needs at least 8 x 8 (width x height)"
    )  # fmt: skip


def test_unsupported_images_are_refused_each_with_its_status(client: httpx.Client, picture: np.ndarray) -> None:
    for content, status in (
        (b"", 415),
        (b"GIF89a...", 415),
        (b'{"image": 1}', 415),
        (as_png(picture)[:200], 400),
        (as_png(np.zeros((100, 100, 3), np.uint8)), 413),
        (as_png(np.zeros((7, 20, 3), np.uint8)), 400),
    ):
        assert refused(client.post("/v1/segment", content=content))[0] == status
    message = refused(client.post("/v1/segment", content=as_png(np.zeros((7, 20, 3), np.uint8))))[1]
    assert message == "Image is 20 x 7; this model needs at least 8 x 8 (width x height)"


def test_a_request_without_a_free_decoder_is_refused_at_the_deadline(
    models: Models, client_of: Callable, picture: np.ndarray
) -> None:
    app = create_app(models, Settings(codec_threads=1))
    blocked, context = threading.Event(), app.state.server_state
    busy = context.pool.submit(blocked.wait, 30)
    try:
        response = client_of(app).post("/v1/segment?timeout=0.2", content=as_png(picture))
        assert not busy.done()  # the decoder was never free
    finally:
        blocked.set()
    assert refused(response) == (
        504,
        "small: the request timed out waiting for a decoder; use a longer timeout, or try again later",
    )
