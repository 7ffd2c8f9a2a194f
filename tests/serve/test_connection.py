"""HTTP on the wire: offers of other protocols, answers before the body, clients that end their half, read slowly, or go."""

import asyncio
import http.client
import json
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from ddcat.bundle import Bundle
from ddcat_serve.http.app import create_app
from ddcat_serve.http.connection import Connection
from ddcat_serve.settings import Settings
from tests.bundles import small_bundle
from tests.serve.payloads import as_labels, as_png
from tests.serve.processes import connect, held_engines, holding, server, wait_for

SLOW = """
import time
from ddcat.engines.base import CheckedEngine
infer = CheckedEngine.infer
def slow(engine, images):
    time.sleep({seconds} if images.shape[1] == 37 else 0)
    return infer(engine, images)
CheckedEngine.infer = slow
"""  # the picture of the tests takes so long, and the warm-up does not
INNER = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"


def request(method: str, path: str, body: bytes | None = None, *headers: str, version: str = "1.1") -> bytes:
    length = [] if body is None else [f"Content-Length: {len(body)}"]
    lines = [f"{method} {path} HTTP/{version}", "Host: x", *length, *headers]
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


def answers(connection: socket.socket) -> list[tuple[int, bytes]]:
    """Read until the server closes: status and body of each answer."""
    connection.settimeout(30)
    found, file = [], connection.makefile("rb")
    while line := file.readline():
        headers = http.client.parse_headers(file)
        found.append((int(line.split()[1]), file.read(int(headers["content-length"]))))
    return found


def answers_to(address: str, sent: bytes) -> list[tuple[int, bytes]]:
    with connect(address) as connection:
        connection.sendall(sent)
        return answers(connection)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with server(small_bundle(tmp_path_factory.mktemp("connection") / "small").path, "--max-bytes", 2**20) as (_, found):
        yield found


# what comes behind a body is nobody's


@pytest.mark.parametrize(("beginning", "endless"), [(b"0\r\n", b"X: y\r\n"), (b"0\r\nX: ", b"y"), (b"5;name=", b"y")])
def test_trailers_and_names_of_chunks_are_no_longer_than_headers(address: str, beginning: bytes, endless: bytes) -> None:
    with connect(address) as connection:
        connection.sendall(request("POST", "/v1/segment", None, "Transfer-Encoding: chunked") + beginning)
        time.sleep(0.1)
        connection.sendall(100_000 * endless)
        connection.shutdown(socket.SHUT_WR)
        assert answers(connection) == [(431, b'{"error": "the trailers are too long"}')]


def test_a_trailer_is_no_header(bundle: Bundle, picture: np.ndarray) -> None:
    image = as_png(picture)
    body = b"%x\r\n%s\r\n0\r\nAuthorization: Bearer long enough\r\nContent-Encoding: br\r\n\r\n" % (len(image), image)
    key = "Authorization: Bearer long enough"
    with server(bundle.path, "--api-key", "long enough") as (_, address):
        for headers, status in (((), 401), ((key,), 200)):
            sent = request("POST", "/v1/segment", None, "Connection: close", "Transfer-Encoding: chunked", *headers)
            assert [found for found, _ in answers_to(address, sent + body)] == [status]


def test_the_body_of_the_request_before_counts_not_as_headers(address: str, picture: np.ndarray) -> None:
    large = as_png(picture) + bytes(60_000)
    first, last = request("POST", "/v1/segment", large), request("GET", "/v2/health/live", None, "Connection: close")
    with connect(address) as connection:
        connection.sendall(first + last[:20])
        time.sleep(0.2)
        connection.sendall(last[20:])
        assert [status for status, _ in answers(connection)] == [200, 200]


def test_pipelined_requests_are_bounded_and_answered_in_order() -> None:
    paths = [f"/{place}" for place in range(10_000)]
    most = 0

    async def ask() -> list[bytes]:
        state = ServerState()

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            nonlocal most
            [connection] = state.connections
            most = max(most, len(connection.pipeline))
            await receive()  # by which uvicorn reads on
            body = scope["path"].encode()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
            await send({"type": "http.response.body", "body": body})

        config = uvicorn.Config(application, log_config=None, lifespan="off")
        made = partial(
            Connection, create_app({}, Settings()).state.server_state, config=config, server_state=state, app_state={}
        )
        listener = await asyncio.get_running_loop().create_server(made, "127.0.0.1", 0)
        async with listener:
            reader, writer = await asyncio.open_connection(*listener.sockets[0].getsockname())
            writer.write(b"".join(request("GET", path) for path in paths))
            writer.write_eof()
            found = await asyncio.wait_for(reader.read(), 60)
            writer.close()
        return [line for line in found.split(b"\r\n") if line.startswith(b"/")]

    found = asyncio.run(ask())
    assert [line.partition(b"HTTP")[0].decode() for line in found] == paths
    assert most < 200


def test_headers_that_wait_to_be_parsed_are_not_late(bundle: Bundle, picture: np.ndarray) -> None:
    many = 300 * request("GET", "/v2/health/live")
    slow = server(bundle.path, "--header-timeout", 0.5, before=SLOW.format(seconds=1))
    with slow as (_, address), connect(address) as connection:
        connection.sendall(request("POST", "/v1/segment", as_png(picture)) + many)
        connection.shutdown(socket.SHUT_WR)
        assert [status for status, _ in answers(connection)] == [200] * 301


@pytest.mark.parametrize("token", ["h2c", "TLS/1.3, websocket"])
def test_a_body_behind_an_offered_upgrade_is_the_body_of_that_request(
    address: str, oracle: Callable, picture: np.ndarray, token: str
) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", f"Upgrade: {token}", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")
    image, expected = as_png(picture), oracle(picture[None])[0][0]
    whole = request("POST", "/v1/segment", image, *offer)
    chunked = request("POST", "/v1/segment", None, *offer, "Transfer-Encoding: chunked")
    chunked += b"%x\r\n%s\r\n0\r\n\r\n" % (len(image), image)
    last = request("GET", "/v2/health/live", None, "Connection: upgrade, close", f"Upgrade: {token}")
    for sent in (whole, chunked):
        for pieces in ((sent + last,), (sent[: -len(image) // 2], sent[-len(image) // 2 :], last)):
            with connect(address) as connection:
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(0.05)
                (status, mask), (alive, _) = answers(connection)
                assert (status, alive) == (200, 200)
                np.testing.assert_array_equal(as_labels(mask), expected)


def test_a_body_in_another_packet_is_no_request_of_its_own(address: str) -> None:
    with connect(address) as connection:
        head = request("POST", "/v2/models/small/infer", INNER, "Connection: close, Upgrade", "Upgrade: h2c")
        connection.sendall(head[: -len(INNER)])
        time.sleep(0.3)
        connection.sendall(INNER)
        ((status, body),) = answers(connection)
    assert (status, list(json.loads(body))) == (400, ["error"])


def test_many_offers_in_one_packet_are_answered_one_by_one(address: str) -> None:
    offers = [request("GET", "/v2/health/live", None, "Connection: Upgrade", "Upgrade: h2c") for _ in range(500)]
    sent = b"".join(offers) + request("GET", "/v2/health/live", None, "Connection: close")
    assert [status for status, _ in answers_to(address, sent)] == [200] * 501


@pytest.mark.parametrize(
    "sent",
    [
        b"RUBBISH\r\n\r\n", b"GET /v2 HTTP/1.1\r\nHo st: x\r\n\r\n", b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        request("POST", "/v1/segment", b"", "Transfer-Encoding: chunked"),
    ],
)  # fmt: skip
def test_malformed_requests_get_an_error_in_json(address: str, sent: bytes) -> None:
    ((status, body),) = answers_to(address, sent)
    assert (status, list(json.loads(body))) == (400, ["error"])


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ((), 400), (("Host: x", "Host: x"), 400), (("Host: a b",), 400), (("Host: x/y",), 400), (("Host:",), 200),
        (("Host: [::1]:8000",), 200), (("Host: x", "Transfer-Encoding: gzip, chunked"), 501),
        (("Host: x", "Transfer-Encoding: gzip", "Transfer-Encoding: chunked"), 501),
    ],
)  # fmt: skip
def test_a_request_names_one_host_and_no_coding_but_chunks(address: str, lines: tuple[str, ...], status: int) -> None:
    end = "0\r\n\r\n" if "Transfer" in "".join(lines) else ""
    ((found, _),) = answers_to(address, "\r\n".join(["GET /v2 HTTP/1.1", *lines, "Connection: close", "", end]).encode())
    assert found == status
    assert answers_to(address, b"GET /v2 HTTP/1.0\r\n\r\n")[0][0] == 200


def test_a_name_that_somebody_has_pointed_at_this_machine_is_not_answered(address: str, bundle: Bundle) -> None:
    def status(where: str, host: str) -> int:
        return httpx.get(f"{where}/v2", headers={"Host": host}).status_code

    ours = ("localhost", "a.localhost:80", "127.0.0.1:8000", "[::1]", "segment", "10.1.2.3")
    assert [status(address, host) for host in ours] == [200] * 6
    assert [status(address, host) for host in ("evil.example", "localhost.evil.example", "evil.example.:80")] == [421] * 3
    with server(bundle.path, "--allowed-hosts", "masks.example") as (_, named):
        assert [status(named, host) for host in ("masks.example", "www.Masks.example", "other.example")] == [200, 200, 421]
    with server(bundle.path, "--host", "0.0.0.0") as (_, everywhere):
        assert status(everywhere.replace("0.0.0.0", "127.0.0.1"), "any.example") == 200


# answers that are given before the body has come


@pytest.mark.parametrize(("version", "header"), [("1.0", "X-A: b"), ("1.1", "Connection: close"), ("1.1", "X-A: b")])
@pytest.mark.parametrize(
    ("path", "status"), [("/nowhere", 404), ("/v1/segment", 413), ("/v2", 405), ("/v1/segment?model=none", 404)]
)
def test_an_answer_before_the_body_arrives(address: str, path: str, status: int, version: str, header: str) -> None:
    body = bytes(20_000_000)  # more than the buffers of both ends take
    with connect(address) as connection:
        connection.sendall(request("POST", path, body, header, version=version))
        if version == "1.1" and header != "Connection: close":
            connection.sendall(request("GET", "/v2/health/live", None, "Connection: close"))  # in use as before
            (first, error), (last, _) = answers(connection)
            assert last == 200
        else:
            ((first, error),) = answers(connection)
    assert (first, list(json.loads(error))) == (status, ["error"])


def test_a_refusal_by_key_or_rate_arrives_before_the_body(bundle: Bundle) -> None:
    sent = [
        request("POST", "/v1/segment", bytes(10_000_000), *key, version="1.0") for key in ((), ("Authorization: Bearer wrong",))
    ]
    with server(bundle.path, "--api-key", "a long secret", "--rate-limit", "2/minute") as (_, address):
        found = [status for whole in (*[sent[0]] * 3, *[sent[1]] * 3) for status, _ in answers_to(address, whole)]
    assert found == [401, 401, 401, 401, 401, 429]


def test_the_rest_of_a_refused_body_is_waited_for_as_long_as_a_body(bundle: Bundle) -> None:
    with server(bundle.path, "--body-timeout", 0.5) as (_, address), connect(address) as connection:
        connection.sendall(request("POST", "/nowhere", bytes(10), version="1.0").replace(b"Length: 10", b"Length: 1000"))
        assert [status for status, _ in answers(connection)] == [404]  # its end has come
        wait_for(lambda: is_refused(connection))


def is_refused(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"x")
    except OSError:
        return True
    return False


# clients that end their half, do not read, or go


def test_a_client_that_sends_no_more_is_answered(bundle: Bundle, oracle: Callable, picture: np.ndarray) -> None:
    """Also while the first bytes of its answer are there ahead of the rest."""
    expected = oracle(picture[None])[0][0]
    with server(bundle.path, before=SLOW.format(seconds=0.6)) as (_, address):
        for count in (1, 2):
            with connect(address) as connection:
                connection.sendall(count * request("POST", "/v1/segment", as_png(picture)))
                connection.shutdown(socket.SHUT_WR)
                found = answers(connection)
            assert [status for status, _ in found] == count * [200]
            np.testing.assert_array_equal(as_labels(found[-1][1]), expected)
        with connect(address) as cut:
            cut.sendall(request("POST", "/v1/segment", as_png(picture))[:-10])
            cut.shutdown(socket.SHUT_WR)
            assert answers(cut) == []


def waiting(address: str) -> float:
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith("ddcat_waiting_pixels{")).rpartition(" ")[2])


@pytest.mark.parametrize(("files", "how"), [(1, "resets"), (5, "closes")])
def test_nothing_is_computed_for_a_client_that_has_gone(
    bundle: Bundle, picture: np.ndarray, tmp_path: Path, files: int, how: str
) -> None:
    parts = [("image", (f"{place}.png", as_png(picture), "image/png")) for place in range(files)]
    held = holding("images.shape[1] == 37", until=tmp_path / "go")
    with server(bundle.path, "--batch-pixels", picture[..., 0].size, "--timeout", 60, before=held) as (_, address):
        sent = httpx.Request("POST", f"{address}/v1/segment", files=parts)
        whole = request("POST", "/v1/segment", sent.read(), f"Content-Type: {sent.headers['content-type']}")
        with connect(address) as first, connect(address) as second:
            first.sendall(request("POST", "/v1/segment", as_png(picture)))  # what is in the engine is finished
            wait_for(lambda: held_engines(tmp_path / "go") == 1)
            second.sendall(whole)
            wait_for(lambda: waiting(address) == files * picture[..., 0].size)
            if how == "resets":
                second.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            second.close()
            wait_for(lambda: waiting(address) == 0)
            (tmp_path / "go").touch()
            first.shutdown(socket.SHUT_WR)
            assert [status for status, _ in answers(first)] == [200]


def unread(address: str, picture: np.ndarray, *, buffer: int = 4096) -> socket.socket:
    """Ask for much, and read none of it yet."""
    host, port = address.removeprefix("http://").split(":")
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    connection.connect((host, int(port)))
    connection.sendall(request("POST", "/v1/segment", as_png(picture), "Accept: application/octet-stream"))
    return connection


LARGE = np.zeros((600, 640, 3), np.uint8)


def test_a_client_that_does_not_read_is_given_up_and_one_that_reads_slowly_is_not(bundle: Bundle) -> None:
    with server(bundle.path, "--body-timeout", 2) as (_, address), unread(address, LARGE) as deaf:
        with unread(address, LARGE, buffer=65536) as slow:
            size = 0
            while piece := slow.recv(10_000):  # at most 100 kB/s
                size += len(piece)
                if size > LARGE[..., 0].size:
                    break
                time.sleep(0.1)
        assert size > LARGE[..., 0].size
        wait_for(lambda: is_refused(deaf))


def test_a_client_that_does_not_read_does_not_hold_the_end_up(bundle: Bundle) -> None:
    options = ("--body-timeout", 1, "--shutdown-delay", 0, "--drain-timeout", 60)
    with server(bundle.path, *options) as (process, address), unread(address, LARGE):
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def test_a_client_that_is_cut_off_at_the_end_of_the_drain_leaves_no_traceback(bundle: Bundle) -> None:
    options = ("--body-timeout", 60, "--shutdown-delay", 0, "--drain-timeout", 1)
    with server(bundle.path, *options) as (process, address), unread(address, LARGE), connect(address) as slow:
        slow.sendall(request("POST", "/v1/segment", bytes(1000))[:-10])
        time.sleep(0.5)
        process.send_signal(signal.SIGTERM)
        assert [status for status, _ in answers(slow)] == [503]
        assert process.wait(30) == 0
        assert process.stderr is not None
        process.stderr.seek(0)
        log = process.stderr.read()
    assert "Traceback" not in log
    assert '"status": 503' in log


def test_answers_within_the_grace_say_that_the_connection_ends(bundle: Bundle) -> None:
    with server(bundle.path, "--shutdown-delay", 5) as (process, address), httpx.Client(base_url=address) as client:
        assert client.get("/v2").headers.get("connection") is None
        process.send_signal(signal.SIGTERM)
        wait_for(lambda: httpx.get(f"{address}/v2/health/ready").status_code == 503)
        assert client.get("/v2").headers["connection"] == "close"
        with connect(address) as pipelined:
            pipelined.sendall(500 * request("GET", "/v2/health/live"))  # more than are parsed at once
            assert [status for status, _ in answers(pipelined)] == [200] * 500


def test_idle_connections_are_kept_as_long_as_the_setting_says(bundle: Bundle) -> None:
    with server(bundle.path, "--idle-timeout", 0.3) as (_, address):  # it ends, although the client keeps it open
        assert [status for status, _ in answers_to(address, request("GET", "/v2/health/live"))] == [200]


def test_connections_have_a_limit(bundle: Bundle) -> None:
    few = "import ddcat_serve.http.connection\nddcat_serve.http.connection._MAX_CONNECTIONS = 5"
    with server(bundle.path, before=few) as (_, address):
        held = [connect(address) for _ in range(5)]
        with connect(address) as sixth:
            ((status, body),) = answers(sixth)
        assert (status, json.loads(body)) == (503, {"error": "too many connections are open: try again in 1 s"})
        held.pop().close()
        time.sleep(0.2)
        assert httpx.get(f"{address}/v2/health/live").status_code == 200
        for connection in held:
            connection.close()
