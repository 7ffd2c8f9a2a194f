"""Behind a proxy: who the client is; and the configurations that the pages show, in a real nginx where there is one."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
from PIL import Image
from playwright.sync_api import expect
from uvicorn.middleware.proxy_headers import _TrustedHosts

from ddcat.bundle import Bundle
from ddcat_serve.settings import Settings
from tests.chromium import chromium, page_of
from tests.serve.payloads import as_png
from tests.serve.processes import free_ports, server

ROOT = Path(__file__).parents[2]
LIMITED = "--rate-limit=3/hour"


def statuses(address: str, count: int, network: str) -> list[int]:
    """Ask as often, each time as a client who claims another address."""
    return [httpx.get(f"{address}/v2", headers={"X-Forwarded-For": f"{network}{n}"}).status_code for n in range(count)]


def test_nobody_is_believed_who_is_not_trusted(bundle: Bundle) -> None:
    with server(bundle.path, LIMITED) as (_, address):
        assert statuses(address, 4, "9.9.9.") == [200, 200, 200, 429]
    with server(bundle.path, LIMITED, "--trusted-proxies", "10.0.0.0/8,127.0.0.1") as (process, address):
        assert statuses(address, 5, "9.9.9.") == [200] * 5
        process.terminate()
        process.wait(30)
        assert process.stderr is not None
        process.stderr.seek(0)
        logged = [json.loads(line) for line in process.stderr]
        assert [line["client"] for line in logged if "client" in line][:2] == ["9.9.9.0", "9.9.9.1"]


@pytest.fixture
def nginx(tmp_path: Path) -> Callable[[str, dict[str, str]], contextlib.AbstractContextManager[None]]:
    """Run the configuration that a page shows, with what is replaced in it."""
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not found:
        pytest.skip("nginx is not installed")

    @contextlib.contextmanager
    def run(page: str, replaced: dict[str, str]) -> Iterator[None]:
        text = (ROOT / "docs/how-to" / page).read_text(encoding="utf-8")
        (block,) = re.findall(r"^```nginx\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for old, new in replaced.items():
            assert old in block
            block = block.replace(old, new)
        temporary = "".join(
            f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        file = tmp_path / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""  # else it could not write to that folder
        server_wide = f"daemon off; {user} pid {tmp_path}/pid; error_log stderr; events {{}}"
        file.write_text(f"{server_wide} http {{ access_log off; {temporary}\n{block}}}")
        with (tmp_path / "nginx.log").open("w+") as log, subprocess.Popen([found, "-c", file], stderr=log) as process:
            try:
                ports = re.findall(r"listen 127\.0\.0\.1:(\d+)", block)
                until = time.monotonic() + 20
                while not all(_open(int(port)) for port in ports):
                    assert process.poll() is None, (tmp_path / "nginx.log").read_text()
                    assert time.monotonic() < until
                    time.sleep(0.05)
                yield
            finally:
                process.terminate()

    return run


def _open(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    line = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    files = ["-keyout", tmp_path / "segment.key", "-out", tmp_path / "segment.pem"]
    subprocess.run([*line.split(), *names, *files], check=True, capture_output=True)
    return tmp_path / "segment.pem"


def test_what_the_page_says_of_nginx(
    nginx: Callable, certificate: Path, bundle: Bundle, oracle: Callable, picture: np.ndarray, tmp_path: Path
) -> None:
    https, http2, grpc = free_ports(3)
    image = as_png(picture)
    limits = ("--rate-limit=100/hour", "--trusted-proxies=127.0.0.1", f"--grpc-port={grpc}")
    with server(bundle.path, *limits) as (process, address):
        replaced = {
            "listen 443 ssl": f"listen 127.0.0.1:{https} ssl",
            "listen 8443 ssl": f"listen 127.0.0.1:{http2} ssl",
            "http://127.0.0.1:8000": address,
            "127.0.0.1:8001": f"127.0.0.1:{grpc}",
            "/etc/ssl/certs": str(tmp_path),
            "/etc/ssl/private": str(tmp_path),
        }
        trust = {"verify": ssl.create_default_context(cafile=str(certificate)), "timeout": 30}
        with nginx("serve.md", replaced), httpx.Client(base_url=f"https://127.0.0.1:{https}", **trust) as client:
            for prefix in ("", "/segment"):
                response = client.post(f"{prefix}/v1/segment", content=image)
                np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(response.content))), oracle(picture[None])[0][0])
                assert client.get(f"{prefix}/metrics").status_code == 404
                described = client.get(f"{prefix}/openapi.json")
                base = urljoin(str(described.url), described.json()["servers"][0]["url"]).rstrip("/")
                assert client.get(f"{base}/v2/health/ready").json() == {"ready": True}
                assert base.endswith(prefix)
            large = client.post("/v1/segment", content=bytes(32 * 2**20 + 1))
            assert (large.status_code, large.json()) == (413, {"error": "the body is larger than 32 MiB"})
            sent = triton_grpc.InferInput("image", [1, *picture.shape], "UINT8")
            sent.set_data_from_numpy(picture[None])
            over_grpc = triton_grpc.InferenceServerClient(f"localhost:{http2}", ssl=True, root_certificates=str(certificate))
            np.testing.assert_array_equal(over_grpc.infer("small", [sent]).as_numpy("labels")[0], oracle(picture[None])[0][0])

            asked = [client.get("/v2", headers={"X-Forwarded-For": f"10.0.0.{n}"}).status_code for n in range(120)]
            assert asked[-1] == 429  # one client, whatever it claims

            process.terminate()
            process.wait(30)
            gone = client.get("/v2")
            assert (gone.status_code, list(gone.json())) == (502, ["error"])


@pytest.mark.slow
def test_the_page_works_under_a_prefix(
    nginx: Callable, certificate: Path, bundle: Bundle, picture: np.ndarray, tmp_path: Path
) -> None:
    https, http2 = free_ports(2)
    file = tmp_path / "image.png"
    file.write_bytes(as_png(picture))
    with server(bundle.path) as (_, address):
        replaced = {
            "listen 443 ssl": f"listen 127.0.0.1:{https}",  # Chromium does not know the certificate
            "listen 8443 ssl http2": f"listen 127.0.0.1:{http2} http2",
            "http://127.0.0.1:8000": address,
            "/etc/ssl/certs": str(tmp_path),
            "/etc/ssl/private": str(tmp_path),
        }
        with nginx("serve.md", replaced), chromium() as browser:
            there = f"http://127.0.0.1:{https}/segment/"
            with page_of(browser, allowed=there) as (page, asked):
                page.goto(there)
                page.set_input_files("#file", file)
                expect(page.locator(".result")).to_contain_text("round trip")
                assert not asked  # all of it lies under the prefix


def test_nginx_tries_the_next_server(nginx: Callable, bundle: Bundle, picture: np.ndarray) -> None:
    (port,) = free_ports(1)
    with server(bundle.path, LIMITED) as (_, busy), server(bundle.path) as (_, idle):
        replaced = {
            "127.0.0.1:8000": busy.removeprefix("http://"),
            "127.0.0.1:8002": idle.removeprefix("http://"),
            "listen 80": f"listen 127.0.0.1:{port}",
        }
        with nginx("scale.md", replaced), httpx.Client(timeout=30) as client:
            for _ in range(12):
                assert client.post(f"http://127.0.0.1:{port}/v1/segment", content=as_png(picture)).status_code == 200
        assert httpx.get(f"{busy}/v2").status_code == 429  # it had refused some


@pytest.mark.parametrize("page", ["serve.md", pytest.param("scale.md", marks=pytest.mark.slow)])
def test_refusals_of_large_images_pass_through_nginx(
    nginx: Callable, certificate: Path, bundle: Bundle, tmp_path: Path, page: str
) -> None:
    """nginx closes each connection by itself, and asks with HTTP/1.0 or 1.1, as its version has it."""
    ports = free_ports(2)
    limits = ("--api-key=a long secret", "--rate-limit=2/minute", "--trusted-proxies=127.0.0.1")
    with server(bundle.path, *limits) as (_, address):
        ours = address.removeprefix("http://")
        replaced = {
            "serve.md": {
                "listen 443 ssl": f"listen 127.0.0.1:{ports[0]}",
                "listen 8443 ssl http2": f"listen 127.0.0.1:{ports[1]} http2",
                "127.0.0.1:8000": ours,
                "/etc/ssl/certs": str(tmp_path),
                "/etc/ssl/private": str(tmp_path),
            },
            "scale.md": {
                "127.0.0.1:8000": ours,
                "127.0.0.1:8002": ours,
                "listen 80": f"client_max_body_size 32m; listen 127.0.0.1:{ports[0]}",
            },
        }
        key, body = {"Authorization": "Bearer a long secret"}, bytes(6_000_000)
        with nginx(page, replaced[page]), httpx.Client(base_url=f"http://127.0.0.1:{ports[0]}", timeout=30) as client:
            assert [client.post("/v1/segment", content=body).status_code for _ in range(8)] == [401] * 8
            found = [client.post("/v1/segment", content=body, headers=key) for _ in range(8)]
            assert {response.status_code for response in found} == {415, 429}
            assert all("retry-after" in response.headers for response in found if response.status_code == 429)
            assert {client.post("/nowhere", content=body).status_code for _ in range(5)} == {401}


def test_a_proxy_is_known_to_a_socket_that_takes_both_versions_of_ip() -> None:
    trusted = _TrustedHosts(Settings(trusted_proxies=("10.0.0.0/8", "::1")).trusted_peers)
    assert all(peer in trusted for peer in ("10.1.2.3", "::ffff:10.1.2.3", "::1"))
    assert not any(peer in trusted for peer in ("11.0.0.1", "::ffff:11.0.0.1", "127.0.0.1", "::2"))
