"""compose.yaml and the files that it mounts, held against the server's command line, settings and routes, and a real nginx."""

import ipaddress
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from ddcat.bundle import Bundle
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import PREFIX, Settings
from tests.serve.processes import free_port, server

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))
SERVER: dict[str, Any] = COMPOSE["services"]["server"]


def option(name: str) -> str:
    command: list[str] = SERVER["command"]
    return command[command.index(name) + 1]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_what_a_service_names_is_there(name: str) -> None:
    service = COMPOSE["services"][name]
    assert ("image" in service) != ("build" in service)
    if "build" in service:
        assert (ROOT / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
    for volume in service["volumes"]:
        source, target = re.fullmatch(r"(.+?):(/[^:]+)(?::ro)?", volume).groups()  # type: ignore[union-attr]
        assert target.startswith("/")
        if source.startswith("./"):
            assert (ROOT / source).is_file()
        elif not source.startswith("$"):
            assert source in COMPOSE["volumes"]
    assert set(service.get("depends_on", {})) <= set(COMPOSE["services"])


def test_the_server_is_what_the_others_expect() -> None:
    assert f"{option('--host')}:{option('--port')}" == "0.0.0.0:8000"
    (network,) = COMPOSE["networks"]["default"]["ipam"]["config"]
    assert ipaddress.ip_network(option("--trusted-proxies")) == ipaddress.ip_network(network["subnet"])
    assert all(name.removeprefix(PREFIX).lower() in Settings.model_fields for name in SERVER["environment"])
    assert float(SERVER["stop_grace_period"].removesuffix("s")) > Settings().shutdown_delay + Settings().drain_timeout
    assert SERVER["command"][0] == SERVER["volumes"][0].split(":")[-2]


def test_prometheus_asks_where_the_server_answers(models: Models) -> None:
    (job,) = yaml.safe_load((ROOT / "docker/prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert yaml.safe_load((ROOT / "docker/prometheus.yml").read_text(encoding="utf-8"))["rule_files"] == [
        volume.split(":")[1] for volume in COMPOSE["services"]["prometheus"]["volumes"] if "alerts" in volume
    ]
    assert job["static_configs"] == [{"targets": [f"server:{option('--port')}"]}]
    assert job["metrics_path"] in create_app(models, Settings()).openapi()["paths"]


def test_nginx_passes_requests_on(bundle: Bundle, tmp_path: Path) -> None:
    found = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not found:
        pytest.skip("nginx is not installed")
    port, text = free_port(), (ROOT / "docker/nginx.conf").read_text(encoding="utf-8")
    assert f"http://server:{option('--port')};" in text
    assert COMPOSE["services"]["nginx"]["ports"][0].endswith(":8080")
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root;" if os.geteuid() == 0 else ""  # else it could not write to that folder
    file = tmp_path / "nginx.conf"
    with server(bundle.path, *SERVER["command"][1:], "--host", "127.0.0.1") as (_, address):
        ours = text.replace("http://server:8000", address).replace("listen 8080", f"listen 127.0.0.1:{port}")
        ours = ours.replace("http {", f"http {{ {temporary}", 1)
        file.write_text(f"daemon off; {user} pid {tmp_path}/pid; error_log stderr; {ours}")
        subprocess.run([found, "-t", "-c", file], check=True, capture_output=True)
        with subprocess.Popen([found, "-c", file], stderr=subprocess.PIPE) as process:
            try:
                again = httpx.HTTPTransport(retries=10)  # until it listens
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, transport=again) as client:
                    assert client.get("/v2/health/ready").json() == {"ready": True}
                    assert client.get("/metrics").status_code == 404
                    assert client.post("/v2/repository/models/small/load").text.startswith("<html>")  # nginx's own 404
                    assert client.post("/v2/repository/index").json()[0]["name"] == "small"
                    assert client.post("/v1/segment", content=bytes(32 * 2**20 + 1)).status_code == 413
            finally:
                process.terminate()
