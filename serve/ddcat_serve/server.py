"""A server process, from taking the port to giving it back."""

import asyncio
import contextlib
import ipaddress
import logging
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ddcat.bundle import TrustPolicy
from ddcat_serve.drain import Drain, leave_at_once
from ddcat_serve.errors import ServeError
from ddcat_serve.http.app import create_app
from ddcat_serve.http.connection import Connection
from ddcat_serve.http.server_state import Context
from ddcat_serve.inference.engine_worker import engines_at_work
from ddcat_serve.inference.memory import give_back_large_blocks, keep_kernels_once
from ddcat_serve.inference.model_registry import Models, load_models
from ddcat_serve.inference.sources import Source
from ddcat_serve.observe.json_logging import log_as_json
from ddcat_serve.observe.metrics import Metrics
from ddcat_serve.settings import Settings

if TYPE_CHECKING:
    from ddcat_serve.rpc.service import GrpcServer

__all__ = ["serve"]


def serve(
    sources: Sequence[Source], *, host: str, port: int, threads: int | None, trust: TrustPolicy, settings: Settings
) -> None:
    """
    Serve bundles until SIGTERM or SIGINT, then leave the process with exit status 0.

    At the first signal ready turns false; connections are still taken for `settings.grace` seconds, so that a balancer can turn
    to others, and what was accepted, by HTTP or gRPC, is answered within `settings.drain` seconds more. A second signal ends it
    at once.

    Parameters
    ----------
    sources : sequence of Source
    host : str
        Address or name to listen at.
    port : int
        0 takes a free one; the line that says where it listens names it.
    threads : int or None
        Of each engine; None: the physical cores.
    trust : TrustPolicy
        What must be shown of who wrote the bundles.
    settings : Settings

    Raises
    ------
    BundleError, ServeError
        For a port that is taken, a bundle that is not whole or does not run, a setting that is none.
    """
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    log_as_json()
    give_back_large_blocks()
    keep_kernels_once()
    if settings.grpc_port is not None:
        if settings.grpc_port == port:
            raise ServeError(f"--grpc-port {port} is the port of HTTP, too: use another one")
        _listen(host, settings.grpc_port, "--grpc-port").close()  # says in a line what gRPC would say in many
    metrics, drain = Metrics(), Drain(settings.drain)
    with (
        leave_at_once(engines_at_work),
        _listen(host, port) as listener,
        load_models(
            sources, settings=settings, threads=threads, trust=trust, observe=metrics.count_batch, drain=drain
        ) as models,
    ):
        grpc_address = None if settings.grpc_port is None else f"{f'[{host}]' if ':' in host else host}:{settings.grpc_port}"
        app = create_app(models, settings, metrics, hosts=_hosts(host, settings))
        config = uvicorn.Config(
            app,
            http=partial(Connection, app.state.context),  # type: ignore[arg-type] # is called as the class would be
            ws="none",
            timeout_keep_alive=settings.idle_timeout,  # type: ignore[arg-type] # whole seconds are for its command line
            log_config=None,
            access_log=False,
            forwarded_allow_ips=settings.trusted_peers,  # by default uvicorn believes whatever 127.0.0.1 passes on
            server_header=False,
        )
        introduce = partial(_introduce, models, host, listener.getsockname()[1], grpc_address)
        server = _Server(config, app.state.context, drain, grpc_address, introduce)
        server.run(sockets=[listener])
        if not server.started:
            raise ServeError("the server did not start: the log above says why")


class _Server(uvicorn.Server):
    """
    HTTP, and gRPC where it has an address, which stop together.

    At a signal they are not ready, after the grace they take nothing more, until the drain ends they answer what they took.
    """

    def __init__(
        self, config: uvicorn.Config, context: Context, drain: Drain, grpc_address: str | None, introduce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._context, self._drain, self._grpc_address, self._introduce = context, drain, grpc_address, introduce
        self._grpc: GrpcServer | None = None
        self._stops_at: float | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if self._grpc_address is not None:
                from ddcat_serve.rpc.service import serve_grpc  # noqa: PLC0415 -- most servers have no need of it

                self._grpc = await stack.enter_async_context(serve_grpc(self._context, self._grpc_address))
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._introduce()

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        if self._stops_at is None:
            self._context.draining = True
            self._stops_at = time.monotonic() + self._context.settings.grace
        else:  # the second time: now
            super().handle_exit(number, frame)
            self.force_exit = True
            self._drain.cut()

    async def on_tick(self, counter: int) -> bool:
        if self._stops_at is not None and time.monotonic() >= self._stops_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        left = self._drain.begin()
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment] # whole seconds are for its command line
        async with asyncio.TaskGroup() as both:
            both.create_task(super().shutdown(sockets))
            if self._grpc is not None:
                both.create_task(self._stop_grpc(self._grpc, left))
        if self.force_exit:
            await self.lifespan.shutdown()  # which uvicorn then leaves out, and logs a traceback of

    async def _stop_grpc(self, server: "GrpcServer", left: float) -> None:
        stopping = asyncio.ensure_future(server.stop(left))
        while not stopping.done() and not self.force_exit:
            await asyncio.wait([stopping], timeout=0.1)
        await server.stop(None)


def _introduce(models: Models, host: str, port: int, grpc: str | None) -> None:
    for versions in models.values():
        for model in versions.values():
            engine = ", ".join(f"{key} {value}" for key, value in model.engine.description.items())
            print(f"{model.name}, version {model.version}: bundle {model.bundle.digest} ({model.bundle.trust})")
            print(f"    passport: {model.passport.summary}\n    {engine}")
            if model.passport.warning is not None:
                print(f"    WARNING: {model.passport.warning}")
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    choice = f"?model={next(iter(models))}" if len(models) > 1 else ""
    if grpc is not None:
        print(f"gRPC at {grpc}")
    print(f"listening at {address}")
    print(f"try: curl --fail-with-body --data-binary @image.jpg -o mask.png '{address}/v1/segment{choice}'", flush=True)


def _hosts(host: str, settings: Settings) -> tuple[str, ...]:
    """Return the names in Host that are answered; empty: all of them."""
    if settings.allowed_hosts or not _is_loopback(host):
        return settings.allowed_hosts
    return ("localhost",)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def _listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """Take the port before anything is loaded; clients that come early wait until it is."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind)
    except (OSError, UnicodeError) as cause:  # the second: a name whose parts are empty or too long
        reason = cause.strerror if isinstance(cause, OSError) else "it is no name of a machine"
        raise ServeError(f"cannot listen at {host}: {reason}: --host takes an address of this machine") from cause
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a restart waits for old connections to time out
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # else the system takes megabytes that a client may never read
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2**16)
        listener.bind(address)
        listener.listen(2048)
    except OSError as cause:
        listener.close()
        raise ServeError(f"cannot listen at {host}, port {port}: {cause.strerror}: choose another with {option}") from cause
    return listener


def _leave(number: int, frame: FrameType | None) -> None:
    """End cleanly: before the server has begun, after it has ended, or at a second signal, which uvicorn raises again."""
    logging.shutdown()
    sys.exit(0)
