"""
A process that has imported the server, and forks one server after the other: the imports are most of a start.

Each request is JSON with three descriptors: a server's standard output, its standard error, and a socket that gets the ID of
its process, and its status when it has ended.
"""

import contextlib
import importlib
import json
import os
import signal
import socket
import sys

from ddcat import cli


def wait_for_requests(requests: socket.socket) -> dict[str, object]:
    """Return what a server is asked to do, in its own process; the first one ends with the last server when nobody asks."""
    while True:
        message, descriptors, _, _ = socket.recv_fds(requests, 2**20, 3)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG if message else 0)[0]:
                pass
        if not message:
            sys.exit()
        if os.fork():
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        out, errors, report = descriptors
        if server := os.fork():
            os.close(out)
            os.write(report, server.to_bytes(8, "big"))
            os.write(report, os.waitpid(server, 0)[1].to_bytes(8, "big"))
            os._exit(0)
        os.dup2(out, 1)
        os.dup2(errors, 2)
        for descriptor in descriptors:
            os.close(descriptor)
        asked: dict[str, object] = json.loads(message)
        return asked


if __name__ == "__main__":
    for module in ("ddcat.engines.onnxruntime", "ddcat_serve.rpc.service", "ddcat_serve.server"):
        importlib.import_module(module)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # is for the tests, and for servers
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        asked = wait_for_requests(requests)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = asked["line"]
    exec(asked["before"], {})
    cli.serve()
