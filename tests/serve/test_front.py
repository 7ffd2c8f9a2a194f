"""What every request passes first: id, key, rate; and what is counted and logged of it."""

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ddcat_serve.app import create_app
from ddcat_serve.errors import ServeError
from ddcat_serve.metrics import Metrics
from ddcat_serve.models import Models
from ddcat_serve.settings import Settings, read_settings
from ddcat_serve.worker import Batch


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


def test_without_the_key_nothing_but_health_is_answered(client_with: Callable) -> None:
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


def test_who_asks_more_often_than_the_rate_waits(client_with: Callable) -> None:
    client = client_with(rate_limit="3/minute")
    assert [client.get("/v2").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
    response = client.get("/v2")
    assert 1 <= int(response.headers["retry-after"]) <= 60
    assert "3 per 1 minute" in response.json()["error"]
    assert client.get("/v2/health/ready").status_code == 200
    with pytest.raises(ServeError, match=r"--rate-limit: .*100/minute would be right"):
        read_settings(rate_limit="often")


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("api_key", "short", "--api-key: expected 8 to 512 characters, got 5"),
        ("api_key", "x" * 40_000, "--api-key: expected 8 to 512 characters, got 40000"),
        *(
            ("api_key", key, "--api-key: a header cannot carry it: use printable ASCII, without spaces or line ends around it")
            for key in ("ключключ", "schlüssel-größe", " spaces around ", "with a line end\n", "with a\ttab")
        ),
        ("rate_limit", "0/minute", "--rate-limit: '0/minute' lets nobody ask: use a rate such as 100/minute"),
        (
            "trusted_proxies", "10.0.0.0/8,proxy.local",
            "--trusted-proxies: 'proxy.local' does not appear to be an IPv4 or IPv6 network: "
            "127.0.0.1 or 10.0.0.0/8 would be right",
        ),
    ],
)  # fmt: skip
def test_a_setting_that_is_none(setting: str, value: str, message: str) -> None:
    with pytest.raises(ServeError) as caught:
        read_settings(**{setting: value})
    assert str(caught.value) == message


def test_pages_of_others_may_ask_only_where_they_are_named(client_with: Callable) -> None:
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
    metrics.count_batch(model, Batch(requests=3, images=4, pixels=100, seconds=0.02, failed=1))
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


def test_spans_are_sent_where_the_environment_says(client_with: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_spans_that_nothing_can_send_are_refused(client_with: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.fastapi", None)
    client_with().get("/v2")  # nobody asked for any
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    with pytest.raises(ServeError, match=r'OpenTelemetry is not installed: pip install "\.\[otel\]"'):
        client_with()
