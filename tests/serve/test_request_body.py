"""Bodies of requests are read no further than their limits, compressed or not, and forms hold files alone."""

import asyncio
import gzip
import tracemalloc
import zlib
from collections.abc import AsyncIterator, Callable
from functools import partial

import httpx
import numpy as np
import pytest

from ddcat_serve.errors import RequestError
from ddcat_serve.http.app import create_app
from ddcat_serve.http.compression import Decoder
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import Settings
from tests.serve.payloads import as_png, asking, refused


def test_forms_with_other_fields_are_refused(client: httpx.Client, picture: np.ndarray) -> None:
    file = ("x.png", as_png(picture), "image/png")
    named = "the part 'model' has no filename: give it one if it is an image; model, version and timeout go into the query"
    assert refused(client.post("/v1/segment", files={"a": file}, data={"model": "small"})) == (
        400, f"{named}, as in /v1/segment?model=NAME",
    )  # fmt: skip
    status, message = refused(client.post("/v1/segment", files={"x" * 5000: (None, b"1")}))
    assert (status, len(message) < 300) == (400, True)
    whole = client.build_request("POST", "http://test/v1/segment", files={"a": file})
    kind = whole.headers["content-type"]
    for body, header, said in (
        (whole.read()[:-60], kind, "the form is cut off: its closing boundary is missing"),
        (b"nothing", kind, "the form cannot be read: "),
        (b"", kind, "the form is cut off: "),
        (whole.read(), "multipart/form-data", "the form cannot be read: Missing boundary"),
        (b"--x--\r\n", "multipart/form-data; boundary=x", "the form holds no file: "),
        (
            b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n",
            "multipart/form-data; boundary=x",
            "the form cannot be",
        ),
    ):
        status, message = refused(client.post("/v1/segment", content=body, headers={"Content-Type": header}))
        assert (status, message[: len(said)]) == (400, said)


def test_a_form_whose_last_file_is_cut_off_is_refused_and_not_answered_without_it(
    client: httpx.Client, picture: np.ndarray
) -> None:
    files = [("image", (f"{place}.png", as_png(picture), "image/png")) for place in range(2)]
    whole = client.build_request("POST", "http://test/v1/segment", files=files)
    headers = {"Content-Type": whole.headers["content-type"]}
    assert refused(client.post("/v1/segment", content=whole.read()[:-1000], headers=headers))[0] == 400
    assert len(client.post("/v1/segment", content=whole.read(), headers=headers).json()["results"]) == 2


def test_no_file_of_a_form_is_written_to_disk(
    client_of: Callable, models: Models, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A container may have no folder to write to."""
    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", lambda file: pytest.fail("a file was written"))
    files = {"image": ("x.png", as_png(picture) + bytes(2_000_000), "image/png")}
    assert client_of(create_app(models, Settings())).post("/v1/segment", files=files).status_code in (200, 400)


PNG = as_png(np.full((16, 24, 3), 200, np.uint8))
zipped = partial(gzip.compress, mtime=0)  # the time would change the tests' names from process to process
_raw = zlib.compressobj(9, zlib.DEFLATED, -15)
RAW_DEFLATE = _raw.compress(PNG) + _raw.flush()


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("Identity", PNG), ("", PNG), (" , identity", PNG),
        ("gzip", zipped(PNG)), ("GZip", zipped(PNG)), ("x-gzip, identity", zipped(PNG)),
        ("gzip", zipped(PNG[:40]) + zipped(PNG[40:])),
        ("deflate", zlib.compress(PNG)), ("deflate", RAW_DEFLATE),
    ],
)  # fmt: skip
def test_compressed_bodies_are_read(client: httpx.Client, encoding: str, body: bytes) -> None:
    headers = {"Content-Encoding": encoding}
    assert client.post("/v1/segment", content=body, headers=headers).content == client.post("/v1/segment", content=PNG).content


@pytest.mark.parametrize(
    ("encoding", "body", "status", "said"),
    [
        ("gzip", zipped(bytes(10_000_000)), 413, "the decompressed body is longer than 65536 bytes"),
        ("deflate", zlib.compress(bytes(10_000_000)), 413, "the decompressed body is longer than 65536 bytes"),
        ("gzip", zipped(b"x" * 65536) + zipped(b"x"), 413, "the decompressed body is longer than 65536 bytes"),
        ("gzip", zipped(PNG)[:-1], 400, "the compressed body is cut off"),
        ("gzip", PNG, 400, "the body is not compressed as its Content-Encoding says"),
        ("deflate", zlib.compress(PNG) + b"more", 400, "bytes follow the end of the compressed body"),
        ("br", PNG, 415, "the body has Content-Encoding 'br': use gzip, deflate or none"),
        ("gzip, gzip", zipped(zipped(PNG)), 415, "the body has Content-Encoding 'gzip, gzip': use gzip"),
    ],
)  # fmt: skip
def test_bodies_that_decompress_to_too_much_or_not_at_all_are_refused(
    client: httpx.Client, encoding: str, body: bytes, status: int, said: str
) -> None:
    response = client.post("/v1/segment", content=body, headers={"Content-Encoding": encoding})
    assert (response.status_code, response.json()["error"][: len(said)]) == (status, said)
    assert ("accept-encoding" in response.headers) is (status == 415)


def test_a_decompressor_gives_no_more_than_it_may() -> None:
    """At no time: a piece of a bomb is a thousand times as long when it is undone."""
    bomb = zipped(bytes(50_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(RequestError, match="longer than 1000 bytes"):
            Decoder("gzip", 1000).feed(bomb)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    with pytest.raises(RequestError, match="bytes follow"):
        Decoder("gzip", 1000).feed(zipped(b"") * 20_000)


def test_answers_in_json_are_compressed_where_the_client_takes_it(models: Models) -> None:
    async def ask(**headers: str) -> httpx.Response:
        async with asking(create_app(models, Settings())) as opened:
            return await opened.get("/v2/models/small", headers=headers)

    plain = asyncio.run(ask(**{"Accept-Encoding": "identity"}))
    assert "content-encoding" not in plain.headers
    for accepted in ("gzip", "br, GZIP;q=0.5", "*"):
        packed = asyncio.run(ask(**{"Accept-Encoding": accepted}))
        assert packed.headers["content-encoding"] == "gzip"
        assert int(packed.headers["content-length"]) < int(plain.headers["content-length"])
        assert packed.json() == plain.json()
        assert "Accept-Encoding" in packed.headers["vary"]
    for refused_coding in ("gzip;q=0", "*;q=0", "br", "gzip;q=0, *"):
        assert "content-encoding" not in asyncio.run(ask(**{"Accept-Encoding": refused_coding})).headers


def test_the_bodies_of_all_requests_have_one_limit(models: Models) -> None:
    """Also where they are short until they are decompressed; and answered requests free their bytes."""
    arrived = asyncio.Event()

    async def ask() -> list[httpx.Response]:
        app = create_app(models, Settings(max_bytes=65_536, queue_bytes=100_000))
        release = asyncio.Event()

        async def slowly() -> AsyncIterator[bytes]:
            yield b"x" * 60_000
            arrived.set()
            await release.wait()

        async with asking(app) as opened:
            first = asyncio.create_task(opened.post("/v1/segment", content=slowly()))
            await arrived.wait()
            second = await opened.post("/v1/segment", content=b"x" * 60_000)
            packed = zipped(bytes(60_000))
            third = await opened.post("/v1/segment", content=packed, headers={"Content-Encoding": "gzip"})
            release.set()
            answers = [second, third, await first, await opened.post("/v1/segment", content=b"x" * 60_000)]
            assert app.state.server_state.byte_budget.try_take(100_000)  # all of it is there again
            return answers

    second, third, first, last = asyncio.run(ask())
    assert [response.status_code for response in (second, third, first, last)] == [503, 503, 415, 415]
    assert second.headers["retry-after"] == "1"
    assert second.json()["error"] == (
        "the requests in progress hold as many bytes as the server keeps at once: try again in 1 s"
    )


def test_the_images_of_a_form_have_one_limit_of_pixels(client: httpx.Client) -> None:
    """Else many that compress well, each within the limit, would be decoded at once."""
    flat = as_png(np.zeros((40, 50, 3), np.uint8))
    files = [("image", (f"{place}.png", flat, "image/png")) for place in range(3)]
    assert client.post("/v1/segment", files=files[:2]).status_code == 200
    message = "the images have 6000 pixels; expected at most 5000 together"
    assert refused(client.post("/v1/segment", files=files)) == (413, message)


def test_long_bodies_are_refused(client: httpx.Client) -> None:
    assert refused(client.post("/v1/segment", content=b"x" * 65_537)) == (413, "the body is longer than 65536 bytes")
    assert refused(client.post("/v2/models/small/infer", content=b" " * 65_537))[0] == 413


def test_a_body_of_no_declared_length_is_read_no_further_than_the_limit(models: Models) -> None:
    sent = []

    async def chunks() -> AsyncIterator[bytes]:
        for number in range(1000):
            sent.append(number)
            yield b"x" * 1024

    async def post() -> httpx.Response:
        async with asking(create_app(models, Settings(max_bytes=65536))) as opened:
            return await opened.post("/v1/segment", content=chunks())

    assert refused(asyncio.run(post()))[0] == 413
    assert len(sent) == 65
