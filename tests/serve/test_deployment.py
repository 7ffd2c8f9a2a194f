"""Manifests and Dockerfiles, held against Kubernetes' schemas, the server's settings and routes, and a clean environment."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ddcat.bundle import Bundle
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "kubernetes/ddcat-serve.yaml"
KSERVE = ROOT / "kubernetes/kserve.yaml"
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all(MANIFEST.read_text())}


@pytest.mark.parametrize("version", ["1.30", "1.34"])
def test_kubernetes_takes_the_manifest(documents: dict[str, Any], version: str) -> None:
    assert set(documents) == {"Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget"}
    for document in documents.values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_manifest_fits_the_server(documents: dict[str, Any], models: Models) -> None:
    pod = documents["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    given = {entry["name"]: entry["value"] for entry in container["env"]}
    settings = {name.removeprefix(PREFIX).lower(): value for name, value in given.items() if name.startswith(PREFIX)}
    assert set(settings) <= set(Settings.model_fields)
    assert pod["terminationGracePeriodSeconds"] > float(settings["shutdown_delay"]) + float(settings["drain_timeout"])
    routes = set(create_app(models, Settings()).openapi()["paths"])
    probes = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes <= routes
    assert documents["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"] in routes
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert container["args"][-1] == str(ports["grpc"])
    assert {port["targetPort"] for port in documents["Service"]["spec"]["ports"]} == set(ports)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert {given["XDG_CACHE_HOME"], "/tmp"} <= writable
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(KSERVE.read_text())
    return loaded


def test_kserve_runs_the_same_pod(service: dict[str, Any], documents: dict[str, Any]) -> None:
    predictor, scaler = dict(service["spec"]["predictor"]), documents["HorizontalPodAutoscaler"]["spec"]
    (metric,) = scaler["metrics"]
    scaling = {
        "minReplicas": scaler["minReplicas"],
        "maxReplicas": scaler["maxReplicas"],
        "scaleMetric": metric["resource"]["name"],
        "scaleTarget": metric["resource"]["target"]["averageUtilization"],
    }
    assert {name: predictor.pop(name) for name in scaling} == scaling
    pod = copy.deepcopy(documents["Deployment"]["spec"]["template"]["spec"])
    (container,) = pod["containers"]
    container["name"] = "kserve-container"  # by this name KServe knows which one answers
    container["args"] = container["args"][:-2]  # KServe routes one port: no gRPC
    container["ports"] = container["ports"][:1]
    assert predictor == pod


@pytest.mark.slow
def test_kserve_takes_its_manifest(kserve: Path, service: dict[str, Any], tmp_path: Path) -> None:
    def misfits(document: dict[str, Any]) -> list[str]:
        line = [kserve, Path(__file__).with_name("kserve_types.py")]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run(
            line, input=json.dumps(document), capture_output=True, text=True, check=True, cwd=tmp_path, env=environment
        )
        return done.stdout.splitlines()

    assert misfits(service) == []
    wrong = copy.deepcopy(service)
    predictor = wrong["spec"]["predictor"]
    predictor["scaleTarget"], predictor["replicas"] = "70", 2
    predictor["containers"][0]["env"][0]["valu"] = "10"
    predictor["volumes"] = predictor["volumes"][0]
    assert set(misfits(wrong)) == {
        "service.spec.predictor has no replicas",
        "service.spec.predictor.scaleTarget is not of the type int",
        "service.spec.predictor.containers[0].env[0] has no valu",
        "service.spec.predictor.volumes is not a list",
    }


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_run_as_the_manifest_says(file: Path, documents: dict[str, Any]) -> None:
    lines = file.read_text().splitlines()
    user = documents["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}" in lines
    assert lines.index(f"USER {user}") < lines.index('ENTRYPOINT ["ddcat", "serve"]')
    assert any("/v2/health/ready" in line for line in lines if line.startswith("HEALTHCHECK"))


@pytest.mark.slow
def test_the_steps_of_the_cpu_image_work_in_a_clean_environment(bundle: Bundle) -> None:
    line = [sys.executable, "docker/check.py", "docker/Dockerfile.cpu", str(bundle.path)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("ready, and stopped by SIGTERM\n")
