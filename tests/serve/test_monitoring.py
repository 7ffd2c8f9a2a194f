"""monitoring/ and docker/prometheus.yml, held against the metrics of a server, and a real Prometheus where there is one."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ddcat.bundle import TrustPolicy
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Drain
from ddcat_serve.inference.repository import open_repository
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import Settings
from tests.bundles import small_bundle
from tests.serve.payloads import as_png
from tests.serve.processes import free_port, server, wait_for

ROOT = Path(__file__).parents[2]
ALERTS: list[dict[str, Any]] = yaml.safe_load((ROOT / "monitoring/alerts.yml").read_text())["groups"][0]["rules"]
BOARD: dict[str, Any] = json.loads((ROOT / "monitoring/grafana-dashboard.json").read_text())
PANELS = [panel for panel in BOARD["panels"] if panel["type"] != "row"]
VARIABLES = {entry["name"]: entry for entry in BOARD["templating"]["list"]}
TARGETS = {"job", "instance"}  # labels that Prometheus itself sets
KEY = "a long secret"


def expressions() -> Iterator[tuple[str, str]]:
    """All expressions, by where they are."""
    for alert in ALERTS:
        yield alert["alert"], alert["expr"]
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"]
    for annotation in BOARD["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]


EXPRESSIONS = dict(expressions())


def filled(expression: str) -> str:
    """An expression of the dashboard, as Grafana would send it."""
    return expression.replace("$__rate_interval", "1m").replace("$job", ".*").replace("$model", ".*")


class Series(NamedTuple):
    """The labels of each sample's name, and the values of the label `route`."""

    labels: dict[str, set[str]]
    routes: set[str]


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory, client_of: Callable) -> Series:
    """What a server says that has swapped, shadows, and has answered enough for its drift."""
    folder = tmp_path_factory.mktemp("monitored") / "models"
    small_bundle(folder / "seg" / "1")
    settings, metrics = Settings(repository=folder, api_key=KEY, shadow=1), Metrics()
    picture = np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)
    opening = open_repository(
        folder, settings=settings, threads=1, trust=TrustPolicy(), metrics=metrics, drain=Drain(5.0)
    )  # fmt: skip
    with opening as repository:
        client = client_of(create_app(repository.models, settings, metrics, repository=repository))
        client.headers["Authorization"] = f"Bearer {KEY}"
        small_bundle(folder / "seg" / "2")
        assert client.post("/v2/repository/models/seg/load").json()["shadow"] == "2"
        for _ in range(3):
            assert client.post("/v1/segment", content=as_png(picture)).status_code == 200
        tensor = {"name": "image", "shape": [1, *picture.shape], "datatype": "UINT8", "data": picture.ravel().tolist()}
        assert client.post("/v2/models/seg/infer", json={"inputs": [tensor]}).status_code == 200
        wait_for(lambda: repository.shadows()[0][1].images == 4)
        wait_for(lambda: repository.models["seg"]["1"].monitor.totals().images == 4)
        text = client.get("/metrics").text
    labels: dict[str, set[str]] = {"ddcat_drift_psi": {"model", "version", "statistic"}}  # these begin later
    routes = set()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels.setdefault(sample.name, set()).update(sample.labels)
            routes.add(sample.labels.get("route", ""))
    return Series(labels, routes)


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_name_and_label_is_one_of_the_server(series: Series, where: str) -> None:
    expression = EXPRESSIONS[where]
    assert (expression.count("("), expression.count("{"), expression.count("[")) == (
        expression.count(")"), expression.count("}"), expression.count("]"),
    )  # fmt: skip
    names = re.findall(r"\bddcat_\w+", expression)
    assert names or expression.startswith("up{")
    there = TARGETS.union(*(series.labels[name] for name in names), {"le"} if "_bucket" in expression else ())
    for name, matchers in re.findall(r"\b(ddcat_\w+)\{([^}]*)\}", expression):
        used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", matchers))
        assert used <= series.labels[name] | TARGETS
    for grouped in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        assert set(re.findall(r"\w+", grouped)) <= there
    for pattern in re.findall(r'route=~"([^"]+)"', expression):
        assert {route for route in series.routes if re.fullmatch(pattern, route)} == {
            "/v1/segment", "/v2/models/{name}/infer",
        }  # fmt: skip


def test_every_metric_is_watched_by_something(series: Series) -> None:
    shown = {
        re.sub(r"_(bucket|sum|count)$", "", name) for text in EXPRESSIONS.values() for name in re.findall(r"ddcat_\w+", text)
    }
    there = {re.sub(r"_(bucket|sum|count|created)$", "", name) for name in series.labels if name.startswith("ddcat_")}
    assert {name.removesuffix("_total") for name in shown} == {name.removesuffix("_total") for name in there}


def test_alerts_say_what_to_do(series: Series) -> None:
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS)
    for alert in ALERTS:
        assert alert["labels"]["severity"] in ("critical", "warning", "info")
        named = re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"])
        names = re.findall(r"\bddcat_\w+", alert["expr"])
        assert set(named) <= TARGETS.union(*(series.labels[name] for name in names))
        grouped = re.search(r"\bby \(([^)]*)\)", alert["expr"])
        assert grouped is None or set(named) <= set(re.findall(r"\w+", grouped[1]))  # else the label is lost
        assert alert["annotations"]["description"].endswith(".")


def test_the_dashboard_is_one_that_grafana_lays_out() -> None:
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    cells: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        place = panel["gridPos"]
        taken = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }  # fmt: skip
        assert not taken & cells
        assert place["x"] + place["w"] <= 24
        cells |= taken
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert all(panel["datasource"] == source and panel["description"].endswith(".") for panel in PANELS)
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(BOARD))) - {"__rate_interval", "__all"}
    assert used == set(VARIABLES)
    for name in ("job", "model"):
        assert re.fullmatch(rf"label_values\(ddcat_\w+(\{{.*\}})?, {name}\)", VARIABLES[name]["query"]["query"])


def tool(name: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    return found


def test_prometheus_parses_all_expressions(tmp_path: Path) -> None:
    rules = [{"record": f"r{place}", "expr": filled(text)} for place, text in enumerate(EXPRESSIONS.values())]
    (tmp_path / "all.yml").write_text(json.dumps({"groups": [{"name": "all", "rules": rules}]}))
    for file in (tmp_path / "all.yml", ROOT / "monitoring/alerts.yml"):
        subprocess.run([tool("promtool"), "check", "rules", file], check=True, capture_output=True)


# samples of every minute, the minute of the question, and the alert that then fires; "_": none
FIRES: dict[str, list[tuple[str, str]]] = {
    "DdcatDown": [('up{job="ddcat", instance="a"}', "0x60")],
    "DdcatModelNotReady": [('ddcat_model_ready{model="seg", version="1", instance="a"}', "0x60")],
    "DdcatServerErrors": [
        ('ddcat_requests_total{status="500", instance="a", job="ddcat"}', "0+2x60"),
        ('ddcat_requests_total{status="200", instance="a", job="ddcat"}', "0+98x60"),
    ],
    "DdcatEngineFails": [('ddcat_failed_requests_total{model="seg", instance="a"}', "0+1x60")],
    "DdcatOverloaded": [
        ('ddcat_requests_total{status="429", instance="a", job="ddcat"}', "0+10x60"),
        ('ddcat_requests_total{status="200", instance="a", job="ddcat"}', "0+90x60"),
    ],
    "DdcatLate": [
        ('ddcat_request_seconds_bucket{route="/v1/segment", le="1.0", instance="a", job="ddcat"}', "0+10x60"),
        ('ddcat_request_seconds_bucket{route="/v1/segment", le="5.0", instance="a", job="ddcat"}', "0+100x60"),
        ('ddcat_request_seconds_bucket{route="/v1/segment", le="+Inf", instance="a", job="ddcat"}', "0+100x60"),
    ],
    "DdcatDrift": [('ddcat_drift_psi{model="seg", statistic="classes", instance="a"}', "0.3x60")],
    "DdcatBundleRefused": [('ddcat_refused_loads_total{model="seg", instance="a"}', "0x50 1x10")],
    "DdcatVersionsDiffer": [
        ('ddcat_model_version{model="seg", instance="a", job="ddcat"}', "1x60"),
        ('ddcat_model_version{model="seg", instance="b", job="ddcat"}', "2x60"),
    ],
    "DdcatNoPassport": [('ddcat_passport_pass{model="seg", version="1", instance="a"}', "0x60")],
}  # fmt: skip
QUIET: list[tuple[str, str]] = [
    ('up{job="ddcat", instance="a"}', "1x60"),
    ('ddcat_model_ready{model="seg", version="1", instance="a"}', "1x60"),
    ('ddcat_requests_total{status="200", instance="a", job="ddcat"}', "0+1000x60"),
    ('ddcat_requests_total{status="500", instance="a", job="ddcat"}', "0+5x60"),
    ('ddcat_requests_total{status="429", instance="a", job="ddcat"}', "0+20x60"),
    ('ddcat_failed_requests_total{model="seg", instance="a"}', "3x60"),
    ('ddcat_request_seconds_bucket{route="/v1/segment", le="1.0", instance="a", job="ddcat"}', "0+100x60"),
    ('ddcat_request_seconds_bucket{route="/v1/segment", le="+Inf", instance="a", job="ddcat"}', "0+100x60"),
    ('ddcat_request_seconds_bucket{route="/metrics", le="+Inf", instance="a", job="ddcat"}', "0+100x60"),
    ('ddcat_drift_psi{model="seg", statistic="classes", instance="a"}', "0.1x60"),
    ('ddcat_refused_loads_total{model="seg", instance="a"}', "2x60"),
    ('ddcat_model_version{model="seg", instance="a", job="ddcat"}', "1x20 2x40"),
    ('ddcat_model_version{model="seg", instance="b", job="ddcat"}', "1x22 2x38"),  # a swap of both, within minutes
    ('ddcat_passport_pass{model="seg", version="1", instance="a"}', "1x60"),
]  # fmt: skip


def test_each_alert_fires_on_its_fault_and_none_on_a_quiet_server(tmp_path: Path) -> None:
    """promtool runs the rules on these series."""
    assert set(FIRES) == {alert["alert"] for alert in ALERTS}
    for name, given in [*FIRES.items(), ("", QUIET)]:
        counts = {'count(ALERTS{alertstate="firing"}) or vector(0)': int(bool(name))}  # of alerts that fire, of any name
        if name:
            counts[f'count(ALERTS{{alertstate="firing", alertname="{name}"}})'] = 1
        expressions = [
            {"expr": text, "eval_time": "55m", "exp_samples": [{"value": count, "labels": "{}"}]}
            for text, count in counts.items()
        ]
        samples = [{"series": series, "values": values} for series, values in given]
        test = {
            "rule_files": [str(ROOT / "monitoring/alerts.yml")],
            "evaluation_interval": "1m",
            "tests": [{"interval": "1m", "input_series": samples, "promql_expr_test": expressions}],
        }
        (tmp_path / f"{name or 'quiet'}.yml").write_text(json.dumps(test))
    files = sorted(tmp_path.glob("*.yml"))
    done = subprocess.run([tool("promtool"), "test", "rules", *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_prometheus_of_compose_reads_a_server_and_answers_the_dashboard(tmp_path: Path) -> None:
    """Its configuration, with the addresses of here; it runs the way its image does."""
    folder = tmp_path / "models"
    small_bundle(folder / "seg" / "1")
    port = free_port()
    with server("--repository", folder, "--watch") as (_, address):
        text = (ROOT / "docker/prometheus.yml").read_text(encoding="utf-8")
        for ours, here in (
            ("server:8000", address.removeprefix("http://")),
            ("/etc/prometheus/alerts.yml", str(ROOT / "monitoring/alerts.yml")),
            ("scrape_interval: 15s", "scrape_interval: 1s"),
        ):
            assert ours in text
            text = text.replace(ours, here)
        (tmp_path / "prometheus.yml").write_text(text)
        line = [
            tool("prometheus"),
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]
        with subprocess.Popen(line, stderr=subprocess.DEVNULL) as process:
            transport = httpx.HTTPTransport(retries=20)
            try:
                with httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30, transport=transport) as asked:

                    def query(expression: str) -> list[dict[str, Any]]:
                        response = asked.get("/query", params={"query": expression})
                        assert response.status_code == 200, response.text
                        found: list[dict[str, Any]] = response.json()["data"]["result"]
                        return found

                    wait_for(lambda: asked.get("/status/config").status_code == 200)
                    wait_for(lambda: [found["value"][1] for found in query('up{job="ddcat"}')] == ["1"])
                    wait_for(lambda: [found["value"][1] for found in query("ddcat_model_version")] == ["1"])
                    for expression in EXPRESSIONS.values():
                        query(filled(expression))
                    rules = asked.get("/rules").json()["data"]["groups"][0]["rules"]
                    assert [rule["name"] for rule in rules] == [alert["alert"] for alert in ALERTS]
            finally:
                process.terminate()
