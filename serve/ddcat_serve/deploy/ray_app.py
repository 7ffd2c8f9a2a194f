"""
A Ray Serve application of the same server: the same routes, the same masks, in replicas that Ray starts, watches and scales.

    serve run ddcat_serve.deploy.ray_app:application bundles=/bundles/camvid

In each replica requests wait and are put into batches as on one machine: by size, by deadline, with a budget of pixels. What a
replica refuses for want of time, it refuses at once; Ray hands out the requests and adds replicas where they are busy.
"""

import contextlib

import ray
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.config import AutoscalingConfig

from ddcat_serve.app import create_app
from ddcat_serve.errors import ServeError
from ddcat_serve.metrics import Metrics
from ddcat_serve.models import load_models, parse_source
from ddcat_serve.settings import read_settings

__all__ = ["Arguments", "application", "run"]


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


def application(arguments: Arguments) -> serve.Application:
    """
    Make the application; DDCAT_SERVE_... in the environment of the replicas are its settings.

    Parameters
    ----------
    arguments : Arguments
    """
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
        graceful_shutdown_timeout_s=40,
    )(serve.ingress()(_Replica))
    bound: serve.Application = deployment.bind(arguments.bundles.split(","), arguments.threads)
    return bound


class _Replica:
    """One server without a socket: Ray's proxy has that."""

    def __init__(self, bundles: list[str], threads: int) -> None:
        self._open = contextlib.ExitStack()
        settings, metrics = read_settings(), Metrics()
        models = self._open.enter_context(
            load_models(
                [parse_source(text) for text in bundles], settings=settings, threads=threads, observe=metrics.count_batch
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
    ray.init(include_dashboard=False)
    serve.start(http_options={"host": host, "port": port})
    serve.run(made, blocking=True)
