"""Real server processes."""

import atexit
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

COMMAND = Path(sys.executable).with_name("ddcat-serve")
MEASURED = "COVERAGE_PROCESS_CONFIG"  # coverage.py measures this process and those it starts; each writes its lines as it ends


class Process:
    """A server that the nursery has forked, with what the tests use of `subprocess.Popen`."""

    def __init__(self, line: Sequence[str], before: str, log: IO[str]) -> None:
        self._report, theirs = socket.socketpair()
        reading, writing = os.pipe()
        self.stdout, self.stderr, self.returncode = os.fdopen(reading), log, None
        asked = {"line": line, "before": before, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(_nursery(), [json.dumps(asked).encode()], [writing, log.fileno(), theirs.fileno()])
        os.close(writing)
        theirs.close()
        self.pid = int.from_bytes(self._report.recv(8), "big")

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self._report.settimeout(timeout)
            try:
                self.returncode = os.waitstatus_to_exitcode(int.from_bytes(self._report.recv(8), "big"))
            except TimeoutError as cause:
                raise subprocess.TimeoutExpired("a server", timeout or 0) from cause
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0.001)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()
        self.stdout.close()
        self._report.close()


@functools.cache
def _nursery() -> socket.socket:
    """Start it once; it ends with this process, which holds the other end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    line = [sys.executable, Path(__file__).with_name("nursery.py"), str(theirs.fileno())]
    process = subprocess.Popen(line, pass_fds=[theirs.fileno()])
    theirs.close()
    atexit.register(process.wait, 30)
    atexit.register(ours.close)  # which is called first, and lets it end
    return ours


@contextlib.contextmanager
def server(*arguments: object, before: str = "", inside: Sequence[str] = ()) -> Iterator[tuple[Any, str]]:
    """
    Run the command until the block ends; gives the process and its address.

    `before`: Python that it runs first; `inside`: a command that becomes ours, whose last argument ours is, in a new process.
    """
    with introduced(*arguments, before=before, inside=inside) as (process, address, _):
        yield process, address


@contextlib.contextmanager
def introduced(*arguments: object, before: str = "", inside: Sequence[str] = ()) -> Iterator[tuple[Any, str, list[str]]]:
    """Run it as `server` does; gives also the lines that it prints of its models, before its address."""
    line = ["run", *map(str, arguments), "--port", "0", "--threads", "1"]
    with tempfile.TemporaryFile("w+") as log, _started(line, before, inside, log) as process:
        try:
            lines = []
            while not (line := process.stdout.readline()).startswith("listening at "):
                assert line, "it ended before it listened"
                lines.append(line)
            yield process, line.removeprefix("listening at ").strip(), lines
        finally:
            if MEASURED in os.environ:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=10)
            process.kill()


def _started(line: list[str], before: str, inside: Sequence[str], log: IO[str]) -> Any:
    if not inside:
        return Process(["ddcat-serve", *line], before, log)
    process = subprocess.Popen([*inside, COMMAND, *line], stdout=subprocess.PIPE, stderr=log, text=True)
    process.stderr = log
    return process


HELD = """
import pathlib
import time
from ddcat.engines.base import CheckedEngine
infer = CheckedEngine.infer
def held(engine, images):
    if {when}:
        pathlib.Path({until!r} + str(id(engine))).touch()
        while not pathlib.Path({until!r}).exists():
            time.sleep(0.01)
    return infer(engine, images)
CheckedEngine.infer = held
"""


def holding(when: str, *, until: Path) -> str:
    """Write what a server runs first so that its engines hold some images until a file is there."""
    return HELD.format(when=when, until=str(until))


def held_engines(until: Path) -> int:
    """Count the engines that have held images."""
    return len(list(until.parent.glob(f"{until.name}?*")))


def wait_for(done: Callable[[], bool]) -> None:
    until = time.monotonic() + 30
    while not done():
        assert time.monotonic() < until
        time.sleep(0.01)


def free_port() -> int:
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        return [stack.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


def connect(address: str) -> socket.socket:
    host, port = address.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)
