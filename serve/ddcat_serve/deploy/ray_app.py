"""
Ray Serve application: the same routes and masks, from replicas that Ray starts, watches and scales.

    serve run ddcat_serve.deploy.ray_app:application bundles=/bundles/camvid

Each replica batches requests by size and deadline, as on one machine, and refuses at once what it cannot answer in time. Ray
distributes the requests, and adds replicas under load.
"""

import contextlib
import os
from pathlib import Path

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig

from ddcat.bundle import TrustPolicy
from ddcat_serve.errors import ServeError
from ddcat_serve.http.app import create_app
from ddcat_serve.inference.model_registry import Drain
from ddcat_serve.inference.repository import open_models
from ddcat_serve.inference.sources import parse_source
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import PREFIX, Settings, read_settings

__all__ = ["Arguments", "application", "run"]

_ONE_OF_MANY = "Ray would send the request to one replica of many: watch the folder instead (--watch)"
_CLOSE_TIMEOUT = 10.0  # seconds after the drain in which a replica frees its engines before Ray kills it


class Arguments(BaseModel):
    """Arguments of `serve run`, as KEY=VALUE."""

    model_config = ConfigDict(extra="forbid")

    bundles: str = Field(
        "", description=f"comma-separated [NAME=]BUNDLE, on a file system that all nodes share; none with {PREFIX}REPOSITORY"
    )
    replicas: int = Field(1, ge=1, description="minimum number of replicas")
    max_replicas: int | None = Field(None, ge=1, description="maximum number of replicas; default: as many as the minimum")
    threads: int = Field(1, ge=1, description="threads of each replica's engines, and CPUs that Ray reserves for it")
    gpus: float = Field(0, ge=0, description="GPUs that Ray reserves for each replica")
    ongoing: int = Field(16, ge=1, description="maximum number of requests in a replica; Ray holds the others")
    queued: int = Field(256, ge=0, description="maximum number of requests held at Ray's proxy; more are refused with 503")
    require_signature: Path | None = Field(None, description="public key (PEM) whose owner must have signed the bundles")
    expect_digest: str = Field("", description="comma-separated digests, one of which each bundle must have")
    require_passport: bool = Field(False, description="whether the bundles must have passed the full gate (without --quick)")

    @property
    def trust(self) -> TrustPolicy:
        """Required proof of the bundles' origin."""
        digests = [digest for digest in self.expect_digest.split(",") if digest]
        return TrustPolicy.from_options(self.require_signature, digests, self.require_passport)


def application(arguments: Arguments) -> serve.Application:
    """
    Create the application; its settings are DDCAT_SERVE_... in the environment of the replicas.

    ServeError for inconsistent arguments, an invalid setting, or one that Ray does not support.
    """
    settings = _read_settings()
    if (settings.repository is None) == (not arguments.bundles):
        raise ServeError(f"expected either bundles or {PREFIX}REPOSITORY: name one of them")
    most = arguments.max_replicas or arguments.replicas
    if most < arguments.replicas:
        raise ServeError(f"--max-replicas {most} is less than --replicas {arguments.replicas}")
    deployment = serve.deployment(
        name="ddcat",
        max_ongoing_requests=arguments.ongoing,
        max_queued_requests=arguments.queued,
        autoscaling_config=AutoscalingConfig(
            min_replicas=arguments.replicas, max_replicas=most, target_ongoing_requests=max(1, arguments.ongoing // 2)
        ),
        ray_actor_options={"num_cpus": arguments.threads, "num_gpus": arguments.gpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=settings.drain_timeout + _CLOSE_TIMEOUT,
    )(serve.ingress()(_Replica))
    bound: serve.Application = deployment.bind(
        arguments.bundles.split(",") if arguments.bundles else [], arguments.threads, arguments.trust
    )
    return bound


class _Replica:
    """A server without a socket; Ray's proxy has that."""

    def __init__(self, bundles: list[str], threads: int, trust: TrustPolicy) -> None:
        self._open = contextlib.ExitStack()
        settings, metrics = _read_settings(), Metrics()
        opening = open_models(
            [parse_source(text) for text in bundles], settings=settings, threads=threads, trust=trust, metrics=metrics,
            drain=Drain(settings.drain_timeout), refusal=_ONE_OF_MANY,
        )  # fmt: skip
        models, repository = self._open.enter_context(opening)
        self._app = create_app(models, settings, metrics, repository=repository)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Raise RuntimeError if an engine cannot be restarted, so that Ray replaces the replica."""
        if not self._app.state.server_state.live:
            raise RuntimeError("an engine cannot be restarted")

    def __del__(self) -> None:
        self._open.close()


def run(arguments: Arguments, *, host: str, port: int) -> None:
    """Serve until Ctrl-C at an address of Ray's proxy, on the cluster that RAY_ADDRESS names, or on one started here."""
    built = application(arguments)  # reports errors before anything starts
    os.environ.setdefault("FORWARDED_ALLOW_IPS", ",".join(_read_settings().trusted_peers))  # Ray's proxy is a uvicorn, too
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": host, "port": port})
    serve.run(built, blocking=True)


def _read_settings() -> Settings:
    settings = read_settings()
    if settings.grpc_port is not None:
        raise ServeError(f"{PREFIX}GRPC_PORT is set, but Ray serves HTTP only: unset it, or use ddcat serve")
    if settings.shadow:
        raise ServeError(f"{PREFIX}SHADOW is set, but Ray sends a request to load to one replica of many: use ddcat serve")
    if settings.jobs is not None:
        raise ServeError(f"{PREFIX}JOBS is set, but Ray would send requests about a job to any replica: use ddcat serve")
    settings.load_refusal()  # raises for other settings that need a repository
    return settings
