"""Manifests and Dockerfiles, held against Kubernetes' schemas, the server's settings and routes, and a clean environment."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from ddcat_serve.app import create_app
from ddcat_serve.models import Models
from ddcat_serve.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "kubernetes/ddcat-serve.yaml"
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
    assert pod["terminationGracePeriodSeconds"] > float(settings["grace"]) + float(settings["drain"])
    routes = set(create_app(models, Settings()).openapi()["paths"])
    probes = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert probes <= routes
    assert documents["Deployment"]["spec"]["template"]["metadata"]["annotations"]["prometheus.io/path"] in routes
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert container["args"][-1] == str(ports["grpc"])
    assert {port["targetPort"] for port in documents["Service"]["spec"]["ports"]} == set(ports)
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert given["XDG_CACHE_HOME"] in {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_run_as_the_manifest_says(file: Path, documents: dict[str, Any]) -> None:
    lines = file.read_text().splitlines()
    user = documents["Deployment"]["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}" in lines
    assert lines.index(f"USER {user}") < lines.index('ENTRYPOINT ["ddcat-serve", "run"]')
    assert any("/v2/health/ready" in line for line in lines if line.startswith("HEALTHCHECK"))


@pytest.mark.slow
def test_the_steps_of_the_cpu_image_work_in_a_clean_environment() -> None:
    done = subprocess.run(
        [sys.executable, "docker/check.py", "docker/Dockerfile.cpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ddcat-serve --help" in done.stdout.splitlines()[-2]
