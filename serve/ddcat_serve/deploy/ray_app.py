"""
A Ray Serve application of the same server: the same routes, the same masks, in replicas that Ray starts, watches and scales.

    serve run ddcat_serve.deploy.ray_app:application bundles=/bundles/camvid

In each replica requests wait and are put into batches as on one machine: by size, by deadline, with a budget of pixels. What a
replica refuses for want of time, it refuses at once; Ray hands out the requests and adds replicas where they are busy.
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
from ddcat_serve.inference.model_registry import load_models
from ddcat_serve.inference.sources import parse_source
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import PREFIX, Settings, read_settings

__all__ = ["Arguments", "application", "run"]

_CLOSING = 10.0  # seconds after the drain in which a replica frees its engines, until Ray kills it


class Arguments(BaseModel):
    """What `serve run` takes as KEY=VALUE."""

    model_config = ConfigDict(extra="forbid")

    bundles: str = Field(description="[NAME=]BUNDLE, with commas between several; on a file system that all nodes share")
    replicas: int = Field(1, ge=1, description="at least")
    max_replicas: int | None = Field(None, ge=1, description="at most; by default as many as at least")
    threads: int = Field(1, ge=1, description="of each replica's engines, and CPUs that Ray sets aside for it")
    gpus: float = Field(0, ge=0, description="that Ray sets aside for each replica")
    ongoing: int = Field(16, ge=1, description="requests that one replica has at most; Ray keeps the others")
    queued: int = Field(256, ge=0, description="requests that wait at Ray's proxy at most; more are refused with 503")
    require_signature: Path | None = Field(None, description="public key (PEM), whose owner must have signed the bundles")
    expect_digest: str = Field("", description="that a bundle must have, one of several with commas between them")
    require_passport: bool = Field(False, description="whether the bundles must have passed the gate with its default budget")

    @property
    def trust(self) -> TrustPolicy:
        """What must be shown of who wrote the bundles."""
        digests = [digest for digest in self.expect_digest.split(",") if digest]
        return TrustPolicy.from_options(self.require_signature, digests, self.require_passport)


def application(arguments: Arguments) -> serve.Application:
    """
    Make the application; DDCAT_SERVE_... in the environment of the replicas are its settings.

    Parameters
    ----------
    arguments : Arguments

    Raises
    ------
    ServeError
        For arguments that do not fit together, and for a setting that is none, or that Ray has no use for.
    """
    settings = _read_settings()
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
        graceful_shutdown_timeout_s=settings.drain + _CLOSING,
    )(serve.ingress()(_Replica))
    bound: serve.Application = deployment.bind(arguments.bundles.split(","), arguments.threads, arguments.trust)
    return bound


class _Replica:
    """One server without a socket: Ray's proxy has that."""

    def __init__(self, bundles: list[str], threads: int, trust: TrustPolicy) -> None:
        self._open = contextlib.ExitStack()
        settings, metrics = _read_settings(), Metrics()
        models = self._open.enter_context(
            load_models(
                [parse_source(text) for text in bundles],
                settings=settings,
                threads=threads,
                trust=trust,
                observe=metrics.count_batch,
            )
        )
        self._app = create_app(models, settings, metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._app

    def check_health(self) -> None:
        """Let Ray replace a replica whose engine cannot be started again."""
        if not self._app.state.context.live:
            raise RuntimeError("an engine does not work any more")

    def __del__(self) -> None:
        self._open.close()


def run(arguments: Arguments, *, host: str, port: int) -> None:
    """
    Serve until Ctrl-C, on the cluster that RAY_ADDRESS names, or on one that is started on this machine.

    Parameters
    ----------
    arguments : Arguments
    host, port
        Of Ray's proxy.
    """
    made = application(arguments)  # what is wrong with them is said before anything starts
    os.environ.setdefault("FORWARDED_ALLOW_IPS", ",".join(_read_settings().trusted_peers))  # Ray's proxy is a uvicorn, too
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": host, "port": port})
    serve.run(made, blocking=True)


def _read_settings() -> Settings:
    settings = read_settings()
    if settings.grpc_port is not None:
        raise ServeError(f"{PREFIX}GRPC_PORT is set, but on Ray there is HTTP alone: unset it, or use ddcat serve")
    return settings
