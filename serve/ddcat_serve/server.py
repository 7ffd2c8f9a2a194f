"""A server process, from taking the port to giving it back."""

import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn

from ddcat.bundle import Trust
from ddcat_serve.app import create_app
from ddcat_serve.errors import ServeError
from ddcat_serve.models import load_models
from ddcat_serve.settings import read_settings

__all__ = ["serve"]


def serve(bundles: Sequence[Path], *, host: str, port: int, threads: int | None, trust: Trust) -> None:
    """
    Serve bundles until SIGTERM or SIGINT, then leave the process with exit status 0.

    Parameters
    ----------
    bundles : sequence of Path
    host : str
        Address or name to listen at.
    port : int
        0 takes a free one; the line that says where it listens names it.
    threads : int or None
        Of each engine; None: the physical cores.
    trust : Trust
        What must be shown of who wrote the bundles.

    Raises
    ------
    BundleError, ServeError
        For a port that is taken, a bundle that is not whole or does not run, a setting that is none.
    """
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, _leave)
    settings = read_settings()
    with _listen(host, port) as listener, load_models(bundles, threads=threads, trust=trust) as models:
        config = uvicorn.Config(create_app(models, settings), log_level="warning", timeout_graceful_shutdown=30)
        for name, model in models.items():
            engine = ", ".join(f"{key} {value}" for key, value in model.engine.description.items())
            print(f"{name}: bundle {model.bundle.digest} ({model.bundle.trust})\n    {engine}")
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        choice = f"?model={next(iter(models))}" if len(models) > 1 else ""
        print(f"listening at {address}")
        print(f"try: curl --fail-with-body --data-binary @image.jpg -o mask.png '{address}/v1/segment{choice}'", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded; clients that come early wait until it is."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind)
    except OSError as cause:
        raise ServeError(f"cannot listen at {host}: {cause.strerror}: --host takes an address of this machine") from cause
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # else a restart waits for old connections to time out
        listener.bind(address)
        listener.listen(2048)
    except OSError as cause:
        listener.close()
        raise ServeError(f"cannot listen at {host}, port {port}: {cause.strerror}: choose another with --port") from cause
    return listener


def _leave(number: int, frame: FrameType | None) -> None:
    """End cleanly; uvicorn raises the signal again, once it has answered what it had accepted."""
    sys.exit(0)
