"""A real server process, and what goes wrong around it: slow headers, signals under load, kill -9, floods of rubbish."""

import io
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from ddcat.bundle import Bundle
from tests.serve.payloads import as_png
from tests.serve.processes import connect, server, wait_for


def everything(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def answer_to(address: str, sent: bytes) -> bytes:
    with connect(address) as connection:
        connection.sendall(sent)
        return everything(connection)


def test_headers_that_are_too_slow_or_too_long_are_refused(bundle: Bundle) -> None:
    with server(bundle.path, "--header-timeout", 0.5, "--max-header-bytes", 2048) as (_, address):
        began, long = time.monotonic(), b"X-Long: " + b"x" * 4000
        assert answer_to(address, b"GET /v2 HTTP/1.1\r\nHost: x\r\nX-Slow: ").startswith(b"HTTP/1.1 408 ")
        assert time.monotonic() - began < 5
        assert answer_to(address, b"").startswith(b"HTTP/1.1 408 ")
        for begun, end in ((b"GET /v2", b""), (b"POST /v2", b"\r\nContent-Length: 3\r\n\r\nabc")):
            assert answer_to(address, begun + b" HTTP/1.1\r\nHost: x\r\n" + long + end).startswith(b"HTTP/1.1 431 ")
        with connect(address) as kept:  # a connection that is used again, after a while
            for _ in range(2):
                kept.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b'{"live":true}'):
                    answer += kept.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200 ")
                time.sleep(0.2)
        assert httpx.get(f"{address}/v2").status_code == 200


@pytest.mark.parametrize("rest", ["line ends", "body"])
def test_bytes_that_begin_no_request_do_not_hold_a_connection(bundle: Bundle, rest: str) -> None:
    limits = ("--header-timeout", 0.5, "--body-timeout", 0.5, "--max-bytes", 1000)
    with server(bundle.path, *limits) as (_, address), connect(address) as kept:
        if rest == "body":
            kept.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        else:
            kept.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        answer = kept.recv(65536)
        while not answer.endswith(b"}"):
            answer += kept.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 " if rest == "body" else b"HTTP/1.1 200 ")
        kept.settimeout(3)
        kept.sendall(b"\r\n")
        assert everything(kept)[:13] == (b"" if rest == "body" else b"HTTP/1.1 408 ")


def test_the_rest_of_a_refused_body_does_not_count_as_headers(bundle: Bundle) -> None:
    with server(bundle.path, "--max-bytes", 1000, "--max-header-bytes", 2048) as (_, address), connect(address) as kept:
        for _ in range(2):
            kept.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
            answer = kept.recv(65536)
            while not answer.endswith(b"}"):
                answer += kept.recv(65536)
            assert answer.startswith(b"HTTP/1.1 413 ")
            for _ in range(10):
                kept.sendall(bytes(10_000))


def test_head_is_get_without_a_body(bundle: Bundle) -> None:
    """Balancers ask for health this way."""
    with server(bundle.path) as (_, address), httpx.Client(base_url=address) as client:
        for path in ("/", "/v2/health/ready", "/v2", "/metrics", "/v2/models/none"):
            head, get = client.head(path), client.get(path)  # on one connection, where a body would be in the way
            assert head.status_code == get.status_code == (404 if path.endswith("none") else 200)
            assert head.content == b""
            assert head.headers["content-type"] == get.headers["content-type"]
        assert 'method="HEAD",route="/v2/health/ready",status="200"' in client.get("/metrics").text


def test_a_body_that_does_not_arrive_is_a_408(bundle: Bundle) -> None:
    with server(bundle.path, "--body-timeout", 0.3) as (_, address):
        answer = answer_to(address, b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b"did not arrive within 0.3 s" in answer


def test_sigterm_under_load_loses_nothing_that_was_accepted(bundle: Bundle, oracle: Callable, picture: np.ndarray) -> None:
    expected = oracle(picture[None])[0][0]
    ended = threading.Event()
    answers: list[bool] = []
    refused: list[Exception] = []

    def ask(address: str) -> None:
        with httpx.Client(timeout=20) as client:
            while not ended.is_set():
                try:
                    response = client.post(f"{address}/v1/segment", content=as_png(picture))
                except httpx.TransportError as error:
                    refused.append(error)  # nobody took it: the log says whether that is so
                    return
                labels = np.asarray(Image.open(io.BytesIO(response.content)))
                answers.append(response.status_code == 200 and bool((labels == expected).all()))

    with server(bundle.path, "--shutdown-delay", 2) as (process, address), ThreadPoolExecutor(4) as pool:
        tasks = [pool.submit(ask, address) for _ in range(4)]
        while len(answers) < 20:
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{address}/v2/health/ready").status_code == 503)
        before = len(answers)
        wait_for(lambda: len(answers) > before)  # still answers
        assert process.wait(20) == 0
        ended.set()
        for task in tasks:
            task.result(20)
        assert process.stderr is not None
        process.stderr.seek(0)
        logged = [json.loads(line) for line in process.stderr]
    assert all(answers)
    assert {line["status"] for line in logged if line.get("path") == "/v1/segment"} == {200}
    assert sum(line.get("path") == "/v1/segment" for line in logged) == len(answers)


def resident_bytes(process: "subprocess.Popen[str]") -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
def test_rubbish_and_requests_leave_no_trace(bundle: Bundle, picture: np.ndarray) -> None:
    random = np.random.default_rng(0)
    good = as_png(picture)
    with server(bundle.path) as (process, address), httpx.Client(base_url=address, timeout=20) as client:

        def flood(count: int) -> set[int]:
            seen = set()
            for number in range(count):
                broken = bytearray(good)
                for place in random.integers(8, len(good), 4):
                    broken[place] = random.integers(256)
                cut = bytes(broken[: random.integers(1, len(good))])
                body = (bytes(broken), cut, random.bytes(500), b"RIFF\xff\xff\xff\xffWEBP" + random.bytes(40))[number % 4]
                seen.add(client.post("/v1/segment", content=body).status_code)
                seen.add(client.post("/v2/models/small/infer", content=random.bytes(300)).status_code)
                seen.add(client.post("/v1/segment", content=good).status_code)
            return seen

        warm = flood(40)
        before = resident_bytes(process)
        seen = warm | flood(150)
        grown = resident_bytes(process) - before
        assert process.poll() is None
    assert seen <= {200, 400, 413, 415}
    assert 200 in seen
    assert 400 in seen
    assert grown < 8 * 1024  # KiB; of 450 requests, of which a third are images


def test_bombs_are_refused_quickly(bundle: Bundle) -> None:
    import zlib  # noqa: PLC0415

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    def png(width: int, height: int, *chunks: bytes) -> bytes:
        header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")

    zeros = zlib.compress(bytes(60_000_000), 9)
    bombs = {
        "giant": png(60_000, 60_000, chunk(b"IDAT", zeros)),
        "more data than pixels": png(20, 20, chunk(b"IDAT", zeros)),
        "text": png(20, 20, chunk(b"zTXt", b"a\0\0" + zeros), chunk(b"IDAT", zlib.compress(bytes(20 * 61)))),
        "profile": png(20, 20, chunk(b"iCCP", b"a\0\0" + zeros), chunk(b"IDAT", zlib.compress(bytes(20 * 61)))),
        "multipart": b"--x\r\n" * 100_000,
        "nested": b"[" * 1_000_000,
    }
    with server(bundle.path) as (process, address), httpx.Client(base_url=address, timeout=20) as client:
        client.get("/v2")
        before = resident_bytes(process) if sys.platform.startswith("linux") else 0
        for name, bomb in bombs.items():
            headers = {"Content-Type": "multipart/form-data; boundary=x"} if name == "multipart" else {}
            path = "/v2/models/small/infer" if name == "nested" else "/v1/segment"
            began = time.monotonic()
            status = client.post(path, content=bomb, headers=headers).status_code
            harmless = ("more data than pixels", "text", "profile")  # what is not of the picture may be passed over
            assert status in ((200, 400) if name in harmless else (400, 413, 415)), name
            assert time.monotonic() - began < 10, name
        if before:
            assert resident_bytes(process) - before < 200 * 1024  # KiB
        assert process.poll() is None
