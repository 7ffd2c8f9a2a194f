"""Manifests and Dockerfiles, held against Kubernetes' schemas, the server's settings and routes, and a clean environment."""

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import kubernetes_validate
import pytest
import yaml

from ddcat.bundle import Bundle
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Models
from ddcat_serve.settings import PREFIX, Settings
from tests.bundles import small_bundle
from tests.serve.processes import free_port, server, wait_for

ROOT = Path(__file__).parents[2]
MANIFEST = ROOT / "kubernetes/base/ddcat-serve.yaml"
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


OVERLAYS = sorted(file.parent for file in (ROOT / "kubernetes").rglob("kustomization.yaml"))


def built(folder: Path) -> dict[str, Any]:
    """The documents of an overlay, as kubectl builds them: that needs no cluster."""
    found = shutil.which("kubectl")
    if not found:
        pytest.skip("kubectl is not installed")
    done = subprocess.run([found, "kustomize", folder], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {document["kind"]: document for document in yaml.safe_load_all(done.stdout)}


@pytest.mark.parametrize("folder", OVERLAYS, ids=lambda folder: folder.name)
def test_kubernetes_takes_each_overlay(folder: Path, documents: dict[str, Any]) -> None:
    assert {folder.name for folder in OVERLAYS} == {"base", "repository", "gpu"}
    found = built(folder)
    assert set(found) == set(documents)
    for document in found.values():
        for version in ("1.30", "1.34"):
            kubernetes_validate.validate(document, version, strict=True)
    pod, base = (each["Deployment"]["spec"]["template"]["spec"] for each in (found, documents))
    (container,), (of_base,) = pod["containers"], base["containers"]
    changed = {name for name in of_base if container[name] != of_base[name]}
    assert changed == {
        "base": set(), "repository": {"args", "volumeMounts", "resources"}, "gpu": {"image", "resources"},
    }[folder.name]  # fmt: skip
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert (folder.name == "gpu") == ("nvidia.com/gpu" in container["resources"]["limits"])


@pytest.mark.slow
def test_the_command_of_the_overlay_with_a_repository_serves_one(tmp_path: Path) -> None:
    pod = built(ROOT / "kubernetes/overlays/repository")["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    (mounted,) = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "models"]
    small_bundle(tmp_path / "models" / "seg" / "1")
    port = container["args"][container["args"].index("--grpc-port") + 1]
    line = [{mounted: str(tmp_path / "models"), port: str(free_port())}.get(word, word) for word in container["args"]]
    assert line != container["args"]
    with server(*line) as (_, address):
        here = address.replace("0.0.0.0", "127.0.0.1")
        assert httpx.get(f"{here}{container['readinessProbe']['httpGet']['path']}").json() == {"ready": True}
        small_bundle(tmp_path / "models" / "seg" / "2")
        wait_for(lambda: httpx.get(f"{here}/v2/models/seg").json()["versions"] == ["2"])


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
