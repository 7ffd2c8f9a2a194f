"""Real server processes."""

import contextlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

COMMAND = Path(sys.executable).with_name("ddcat-serve")


@contextlib.contextmanager
def server(*arguments: object, before: str = "", inside: Sequence[str] = ()) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """
    Run the command until the block ends; gives the process and its address.

    `before`: Python that it runs first; `inside`: a command that becomes ours, whose last argument ours is.
    """
    with introduced(*arguments, before=before, inside=inside) as (process, address, _):
        yield process, address


@contextlib.contextmanager
def introduced(
    *arguments: object, before: str = "", inside: Sequence[str] = ()
) -> Iterator[tuple["subprocess.Popen[str]", str, list[str]]]:
    """Run it as `server` does; gives also the lines that it prints of its models, before its address."""
    command = [sys.executable, "-c", f"{before}\nfrom ddcat.cli import serve\nserve()"] if before else [COMMAND]
    line = [*inside, *command, "run", *map(str, arguments), "--port", "0", "--threads", "1"]
    with (
        tempfile.TemporaryFile("w+") as log,  # a pipe that nobody reads would stop the server
        subprocess.Popen(line, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        process.stderr = log
        try:
            assert process.stdout is not None
            lines = []
            while not (line := process.stdout.readline()).startswith("listening at "):
                assert line, "it ended before it listened"
                lines.append(line)
            yield process, line.removeprefix("listening at ").strip(), lines
        finally:
            process.kill()


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
