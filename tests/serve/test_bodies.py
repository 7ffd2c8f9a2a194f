"""Bodies of requests are read no further than their limits, and forms hold files alone."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import numpy as np

from ddcat_serve.app import create_app
from ddcat_serve.models import Models
from ddcat_serve.settings import Settings
from tests.serve.answers import refused
from tests.serve.pictures import as_png


def test_forms_that_are_not_of_files_alone_are_refused(client: httpx.Client, picture: np.ndarray) -> None:
    file = ("x.png", as_png(picture), "image/png")
    assert refused(client.post("/v1/segment", files={"a": file}, data={"model": "small"}))[0] == 400
    whole = client.build_request("POST", "http://test/v1/segment", files={"a": file})
    kind = whole.headers["content-type"]
    for body, header in (
        (whole.read()[:-60], kind),
        (b"nothing", kind),
        (b"", kind),
        (whole.read(), "multipart/form-data"),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n", "multipart/form-data; boundary=x"),
    ):
        status, message = refused(client.post("/v1/segment", content=body, headers={"Content-Type": header}))
        assert (status, message[:30]) == (400, "the multipart body is not of f")


def test_the_images_of_a_form_have_one_limit_of_pixels(client: httpx.Client) -> None:
    """Else many that compress well, each within the limit, would be decoded at once."""
    flat = as_png(np.zeros((40, 50, 3), np.uint8))
    files = [("image", (f"{place}.png", flat, "image/png")) for place in range(3)]
    assert client.post("/v1/segment", files=files[:2]).status_code == 200
    message = "the images have 6000 pixels; at most 5000 in all are taken"
    assert refused(client.post("/v1/segment", files=files)) == (413, message)


def test_long_bodies_are_refused(client: httpx.Client) -> None:
    assert refused(client.post("/v1/segment", content=b"x" * 65_537)) == (413, "the body is longer than 65536 bytes")
    assert refused(client.post("/v2/models/small/infer", content=b" " * 65_537))[0] == 413
    assert refused(client.post("/v1/segment", content=b"x", headers={"Content-Encoding": "gzip"}))[0] == 415


def test_a_body_of_no_declared_length_is_read_no_further_than_the_limit(models: Models) -> None:
    sent = []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(1000):
            sent.append(number)
            yield b"x" * 1024

    async def post() -> httpx.Response:
        transport = httpx.ASGITransport(create_app(models, Settings(max_bytes=65536)))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as opened:
            return await opened.post("/v1/segment", content=chunks())

    assert refused(asyncio.run(post()))[0] == 413
    assert len(sent) == 65
