"""What every request passes first: id, key, rate; and what is counted and logged of it."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ddcat_serve.errors import ServeError
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.observe.usage import Batch
from ddcat_serve.settings import Settings, read_settings


@pytest.fixture
def client_with(models: Models, client_of: Callable) -> Callable[..., httpx.Client]:
    return lambda **settings: client_of(create_app(models, Settings(**settings)))


def test_a_request_keeps_its_id_or_is_given_one(client_with: Callable, caplog: pytest.LogCaptureFixture) -> None:
    client = client_with()
    with caplog.at_level(logging.INFO, logger="ddcat_serve.access"):
        assert client.get("/v2", headers={"X-Request-Id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
        made = client.get("/nowhere", headers={"X-Request-Id": "two words\x00"[:9]}).headers["x-request-id"]
    assert len(made) == 32
    first, second = (json.loads(record.message) for record in caplog.records)
    assert {key: first[key] for key in ("request_id", "method", "path", "status")} == {
        "request_id": "abc-1.2_3", "method": "GET", "path": "/v2", "status": 200,
    }  # fmt: skip
    assert (second["request_id"], second["status"]) == (made, 404)
    assert second["ms"] >= 0


def test_only_health_and_the_page_need_no_key(client_with: Callable) -> None:
    client = client_with(api_key="correct horse")
    for headers in (
        {},
        {"Authorization": "Bearer wrong horse"},
        {"Authorization": "correct horse"},
        {"Authorization": "Basic x"},
    ):
        response = client.get("/v2", headers=headers)
        assert response.status_code == 401
        assert list(response.json()) == ["error"]
        assert response.headers["www-authenticate"] == "Bearer"
        assert client.post("/v1/segment", content=b"x", headers=headers).status_code == 401
    assert client.get("/v2", headers={"Authorization": "bearer correct horse"}).status_code == 200
    assert client.get("/v2/health/live").status_code == client.get("/v2/health/ready").status_code == 200


def test_clients_above_the_rate_wait(client_with: Callable) -> None:
    client = client_with(rate_limit="3/minute")
    assert [client.get("/v2").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    response = client.get("/v2")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert "3 per 1 minute" in response.json()["error"]
    assert client.get("/v2/health/ready").status_code == 200
    with pytest.raises(ServeError, match=r"--rate-limit: .*use one such as 100/minute"):
        read_settings(rate_limit="often")


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/small", "/v2/models/small/ready"])
def test_paths_of_the_protocol_may_end_with_a_slash(client_with: Callable, path: str) -> None:
    client = client_with()
    assert client.get(f"{path}/").status_code == client.head(path).status_code == client.head(f"{path}/").status_code == 200
    assert client.get(f"{path}//").status_code == 404


def test_responses_have_security_headers(client_with: Callable) -> None:
    client = client_with()
    for path in ("/", "/v2", "/metrics", "/nowhere", "/v1/segment", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"].partition("script-src")[2].partition(";")[0]


def test_other_origins_are_allowed_only_by_name(client_with: Callable) -> None:
    headers = {"Origin": "https://a.example"}
    assert "access-control-allow-origin" not in client_with().get("/v2", headers=headers).headers
    allowed = client_with(cors_origins=("https://a.example",))
    assert allowed.get("/v2", headers=headers).headers["access-control-allow-origin"] == "https://a.example"
    assert "access-control-allow-origin" not in allowed.get("/v2", headers={"Origin": "https://b.example"}).headers
    keyed = client_with(cors_origins=("https://a.example",), api_key="a-long-secret")
    asked = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    assert keyed.options("/v1/segment", headers=asked).status_code == 200  # a preflight has no key
    refused = keyed.get("/v2", headers=headers)
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example"


def test_requests_and_batches_are_counted(models: Models, client_of: Callable) -> None:
    metrics = Metrics()
    client = client_of(create_app(models, Settings(), metrics))
    model = models["small"]["1"]
    metrics.count_batch(model.name, model.version, Batch(requests=3, images=4, pixels=100, seconds=0.02, failed=1))
    client.get("/v2/models/small")
    client.get("/v2/models/other")
    client.get("/surely/not")
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found: dict[tuple[str, tuple[Any, ...]], float] = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }

    def value(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    route = "/v2/models/{name}"
    assert value("ddcat_requests_total", route=route, method="GET", status="200") == 1
    assert value("ddcat_requests_total", route=route, method="GET", status="404") == 1
    assert value("ddcat_requests_total", route="none", method="GET", status="404") == 1
    assert value("ddcat_request_seconds_count", route=route) == 2
    named = {"model": "small", "version": "1"}
    assert value("ddcat_batch_images_sum", **named) == 4
    assert value("ddcat_pixels_total", **named) == 100
    assert value("ddcat_failed_requests_total", **named) == 1
    assert value("ddcat_waiting_pixels", **named) == 0
    assert value("ddcat_model_ready", **named) == 1
    assert value("ddcat_passport_pass", **named) == 0


def test_spans_are_sent_if_the_environment_names_a_collector(client_with: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    http = pytest.importorskip("opentelemetry.exporter.otlp.proto.http.trace_exporter")
    spans = export.InMemorySpanExporter()
    monkeypatch.setattr(http, "OTLPSpanExporter", lambda: spans)
    monkeypatch.setattr(
        "opentelemetry.sdk.trace.export.BatchSpanProcessor",
        __import__("opentelemetry.sdk.trace.export").sdk.trace.export.SimpleSpanProcessor,
    )
    client_with().get("/v2")
    assert not spans.get_finished_spans()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    client_with().get("/v2/models/small")
    assert any("/v2/models/{name}" in span.name for span in spans.get_finished_spans())


def test_tracing_without_opentelemetry_is_refused(client_with: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.fastapi", None)
    client_with().get("/v2")  # nobody asked for any
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    with pytest.raises(ServeError, match=r'OpenTelemetry is not installed: pip install "\.\[otel\]"'):
        client_with()
