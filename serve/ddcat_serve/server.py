"""The server process, from opening its port to its exit."""

import asyncio
import contextlib
import ipaddress
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from ddcat.bundle import TrustPolicy
from ddcat_serve.errors import ServeError
from ddcat_serve.http.app import create_app
from ddcat_serve.http.connection import Connection
from ddcat_serve.http.job_runner import run_jobs
from ddcat_serve.http.server_state import ServerState
from ddcat_serve.inference.engine_worker import engines_at_work
from ddcat_serve.inference.memory import disable_onednn_cache, tune_malloc
from ddcat_serve.inference.model_registry import Drain
from ddcat_serve.inference.repository import open_models
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
    Serve bundles until SIGTERM or SIGINT, then exit with status 0.

    At the first signal readiness turns false. Connections are accepted for `settings.shutdown_delay` seconds more, so that a
    load balancer can turn to other servers; then accepted requests, over HTTP or gRPC, are answered within
    `settings.drain_timeout` seconds. A second signal ends the process at once.

    There are no `sources` if `settings` names a repository; `port` 0 takes a free one, which is printed; `threads` are those of
    each engine, by default the physical cores; `trust` is the required proof of the bundles' origin.

    Raises
    ------
    BundleError, ServeError
        For a port in use, an incomplete bundle or one that does not run, or an invalid setting.
    """
    refusal = settings.load_refusal()
    if (settings.repository is None) == (not sources):
        raise ServeError("expected either bundles or --repository FOLDER: name one of them")
    signal.signal(signal.SIGTERM, _exit_cleanly)
    signal.signal(signal.SIGINT, _exit_cleanly)
    log_as_json()
    tune_malloc()
    disable_onednn_cache()
    if settings.grpc_port is not None:
        if settings.grpc_port == port:
            raise ServeError(f"--grpc-port {port} is also the port of HTTP: use another one")
        _listen(host, settings.grpc_port, "--grpc-port").close()  # a one-line error, where gRPC's has many lines
    metrics, drain = Metrics(), Drain(settings.drain_timeout)
    with _exit_despite_engine_threads(), _listen(host, port) as listener, contextlib.ExitStack() as stack:
        opening = open_models(
            sources, settings=settings, threads=threads, trust=trust, metrics=metrics, drain=drain, refusal=refusal
        )
        models, repository = stack.enter_context(opening)
        grpc_address = None if settings.grpc_port is None else f"{f'[{host}]' if ':' in host else host}:{settings.grpc_port}"
        jobs = stack.enter_context(run_jobs(models, settings))
        app = create_app(models, settings, metrics, hosts=_allowed_hosts(host, settings), repository=repository, jobs=jobs)
        config = uvicorn.Config(
            app,
            http=partial(Connection, app.state.server_state),  # type: ignore[arg-type] # is called like the class
            ws="none",
            timeout_keep_alive=settings.idle_timeout,  # type: ignore[arg-type] # only its command line needs whole seconds
            log_config=None,
            access_log=False,
            forwarded_allow_ips=settings.trusted_peers,  # by default uvicorn trusts X-Forwarded-For from 127.0.0.1
            server_header=False,
        )
        announce = partial(_print_startup, app.state.server_state, host, listener.getsockname()[1], grpc_address)
        server = _Server(config, app.state.server_state, drain, grpc_address, announce)
        server.run(sockets=[listener])
        if not server.started:
            raise ServeError("the server did not start: the log above says why")


class _Server(uvicorn.Server):
    """
    HTTP, and gRPC if it has an address, which stop together.

    A signal starts the shutdown delay, then the drain; a second signal ends both.
    """

    def __init__(
        self, config: uvicorn.Config, state: ServerState, drain: Drain, grpc_address: str | None, announce: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._state, self._drain, self._grpc_address, self._announce = state, drain, grpc_address, announce
        self._grpc: GrpcServer | None = None
        self._stops_at: float | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if self._grpc_address is not None:
                from ddcat_serve.rpc.service import serve_grpc  # noqa: PLC0415 -- few servers need it

                self._grpc = await stack.enter_async_context(serve_grpc(self._state, self._grpc_address))
            await super().serve(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    def handle_exit(self, number: int, frame: FrameType | None) -> None:
        if self._stops_at is None:
            self._state.draining = True
            self._stops_at = time.monotonic() + self._state.settings.shutdown_delay
        else:  # the second signal
            super().handle_exit(number, frame)
            self.force_exit = True
            self._drain.cut()

    async def on_tick(self, counter: int) -> bool:
        if self._stops_at is not None and time.monotonic() >= self._stops_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        left = self._drain.begin()
        self.config.timeout_graceful_shutdown = left  # type: ignore[assignment] # only its command line needs whole seconds
        async with asyncio.TaskGroup() as both:
            both.create_task(super().shutdown(sockets))
            if self._grpc is not None:
                both.create_task(self._stop_grpc(self._grpc, left))
        if self.force_exit:
            await self.lifespan.shutdown()  # which uvicorn would skip, and log a traceback

    async def _stop_grpc(self, server: "GrpcServer", left: float) -> None:
        stopping = asyncio.ensure_future(server.stop(left))
        while not stopping.done() and not self.force_exit:
            await asyncio.wait([stopping], timeout=0.1)
        await server.stop(None)


def _print_startup(state: ServerState, host: str, port: int, grpc: str | None) -> None:
    for model in state.served:
        engine = ", ".join(f"{key} {value}" for key, value in model.engine.description.items())
        print(f"{model.name}, version {model.version}: bundle {model.bundle.digest} ({model.bundle.trust})")
        print(f"    passport: {model.passport.summary}\n    {engine}")
        if model.passport.warning is not None:
            print(f"    WARNING: {model.passport.warning}")
    if state.repository is not None:
        refusal, watched = state.repository.refusal, "watched" if state.settings.watch else "not watched"
        print(f"repository {state.repository.folder.path}: {watched}; {refusal or 'requests with the API key may load models'}")
    address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    choice = f"?model={next(iter(state.models))}" if len(state.models) > 1 else ""
    if grpc is not None:
        print(f"gRPC at {grpc}")
    print(f"listening at {address}")
    print(f"try: curl --fail-with-body --data-binary @image.jpg -o mask.png '{address}/v1/segment{choice}'", flush=True)


def _allowed_hosts(host: str, settings: Settings) -> tuple[str, ...]:
    """Return the accepted names in the Host header; empty: any."""
    if settings.allowed_hosts or not _is_loopback(host):
        return settings.allowed_hosts
    return ("localhost",)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.rstrip(".").lower() == "localhost"


def _listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """Open the port before bundles are loaded; early clients wait until they are."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind)
    except (OSError, UnicodeError) as cause:  # UnicodeError: a label of the name is empty or too long
        reason = cause.strerror if isinstance(cause, OSError) else "it is not a valid host name"
        raise ServeError(f"cannot listen at {host}: {reason}: use an address of this machine for --host") from cause
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # otherwise a restart waits for old connections
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):  # otherwise the system buffers megabytes that a client may never read
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2**16)
        listener.bind(address)
        listener.listen(2048)
    except OSError as cause:
        listener.close()
        raise ServeError(f"cannot listen at {host}, port {port}: {cause.strerror}: choose another with {option}") from cause
    return listener


def _exit_cleanly(number: int, frame: FrameType | None) -> None:
    """Exit with status 0: before the server starts, after it ends, or at a second signal, which uvicorn raises again."""
    logging.shutdown()
    sys.exit(0)


@contextlib.contextmanager
def _exit_despite_engine_threads() -> Iterator[None]:
    """
    End the process at once after the block, if a thread of an engine is still running.

    The interpreter would free what that thread uses, and the runtime would abort the process: a signal, not an exit status.
    """
    status = 0
    try:
        yield
    except SystemExit as leaving:
        if not engines_at_work():
            raise
        status = leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)
    if not engines_at_work():
        return
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
