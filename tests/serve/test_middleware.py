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
from ddcat_serve.http.access_control import Guard
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.engine_worker import Batch
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.observe.metrics import Metrics
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
    with pytest.raises(ServeError, match=r"--rate-limit: .*use 100/minute"):
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
        ("rate_limit", "0/minute", "--rate-limit: '0/minute' would refuse every request: use a rate such as 100/minute"),
        (
            "trusted_proxies", "10.0.0.0/8,proxy.local",
            "--trusted-proxies: 'proxy.local' does not appear to be an IPv4 or IPv6 network: "
            "use 127.0.0.1 or 10.0.0.0/8",
        ),
    ],
)  # fmt: skip
def test_a_setting_that_is_none(setting: str, value: str, message: str) -> None:
    with pytest.raises(ServeError) as caught:
        read_settings(**{setting: value})
    assert str(caught.value) == message


def test_wrong_keys_are_limited_before_they_are_compared() -> None:
    clock = [1000.0]
    guard = Guard(Settings(api_key="a long secret"), clock=lambda: clock[0])

    def status(client: str, *values: str) -> int:
        refusal = guard.refusal(values, client)
        return 200 if refusal is None else refusal.status

    assert [status("1.2.3.4", "Bearer guess") for _ in range(25)] == 20 * [401] + 5 * [429]
    assert status("1.2.3.4", "Bearer a long secret") == 429  # else the right guess would still be told from the others
    assert status("1.2.3.4") == 401  # no guess
    assert status("1.2.3.5", "Bearer a long secret") == 200
    refusal = guard.refusal(["Bearer guess"], "1.2.3.4")
    assert refusal is not None
    assert refusal.headers == {"Retry-After": "60"}
    clock[0] += 60
    assert status("1.2.3.4", "Bearer a long secret") == 200
    assert [status("1.2.3.4", "Bearer a long secret") for _ in range(30)] == 30 * [200]  # right keys are not counted


def test_wrong_keys_count_as_requests() -> None:
    guard = Guard(Settings(api_key="a long secret", rate_limit="3/minute"))
    refusals = [guard.refusal(["Bearer guess"], "1.2.3.4") for _ in range(5)]
    assert [refusal and refusal.status for refusal in refusals] == [401, 401, 401, 429, 429]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("127.0.0.1", "::ffff:127.0.0.1", True), ("2001:db8:1:2::1", "2001:db8:1:2:3:4:5:6", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False), ("127.0.0.1", "127.0.0.2", False),
        ("::ffff:127.0.0.1", "::ffff:127.0.0.2", False), ("fe80::1%eth0", "fe80::2%eth0", True), ("unknown", "other", False),
    ],
)  # fmt: skip
def test_addresses_of_one_client_have_one_rate(first: str, second: str, same: bool) -> None:
    guard = Guard(Settings(rate_limit="2/minute"))
    assert [guard.refusal((), client) is None for client in (first, second, first)] == [True, True, not same]


def test_a_rate_is_counted_by_a_clock_that_nobody_sets_back(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    guard = Guard(Settings(rate_limit="2/minute"), clock=lambda: clock[0])
    monkeypatch.setattr("time.time", lambda: 1.0)
    found = []
    for moment in (0, 30, 59, 60, 61, 90):  # two in any minute
        clock[0] = float(moment)
        found.append(guard.refusal((), "1.2.3.4") is None)
    assert found == [True, True, False, True, False, True]


def test_clients_who_do_not_ask_any_more_are_forgotten() -> None:
    clock = [0.0]
    guard = Guard(Settings(rate_limit="1/second"), clock=lambda: clock[0])
    for number in range(5000):
        clock[0] += 0.01
        assert guard.refusal((), f"10.0.{number // 250}.{number % 250}") is None
    assert len(guard._requests._seen) <= 1001  # type: ignore[union-attr]


@pytest.mark.parametrize("path", ["/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/small", "/v2/models/small/ready"])
def test_paths_of_the_protocol_may_end_with_a_slash(client_with: Callable, path: str) -> None:
    client = client_with()
    assert client.get(f"{path}/").status_code == client.head(path).status_code == client.head(f"{path}/").status_code == 200
    assert client.get(f"{path}//").status_code == 404


def test_no_answer_is_taken_for_another_kind_or_loads_anything(client_with: Callable) -> None:
    client = client_with()
    for path in ("/", "/v2", "/metrics", "/nowhere", "/v1/segment", "/openapi.json"):
        headers = client.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert "unsafe-inline" not in headers["content-security-policy"].partition("script-src")[2].partition(";")[0]


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
