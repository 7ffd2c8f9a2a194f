"""
What hostile requests cost a server: answers, the longest wait for health, and memory at its peak and afterwards.

    python bench/serving/hostile.py BUNDLE --out docs/results/serving/serving-hostile [--openvino BUNDLE] [--before FILE]

Each case has a server of its own, with its defaults. It is within the limits if every request was answered within its
deadline, health within a second, memory stayed below the limit of `kubernetes/` (2 GiB) and came back to within 20 % of the
start within a minute. OUT.json has all figures, OUT.md the table, beside those of FILE, which the run of another tree wrote.
With `--cgroup` servers run in that control group, whose limit they read. Linux only.
"""

import argparse
import contextlib
import http.client
import io
import json
import os
import platform
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
from PIL import Image

from ddcat.atomic_files import write_text
from ddcat.cli_support import run

LIMIT = 2048  # MiB
DEADLINE, MARGIN = 10.0, 1.0  # seconds: the server's default, and what a busy machine may add
SETTLE = 60.0  # seconds
GONE = "none"  # instead of a status


class Answer(NamedTuple):
    """What came back: a status, and after how many seconds."""

    status: str
    seconds: float


class Target(NamedTuple):
    """A server."""

    port: int
    grpc_port: int
    pid: int


Case = Callable[[Target], list[Answer]]


# --- what is sent ---


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(height: int, width: int, *, bits: int = 1, colour: int = 0, before: bytes = b"") -> bytes:
    """A black PNG of few bytes, with further chunks before its pixels."""
    packer = zlib.compressobj(9)
    row = bytes((width * bits + 7) // 8 + 1)
    pixels = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def webp(height: int, width: int) -> bytes:
    """A black lossless WebP."""
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, "WEBP", lossless=True)
    return file.getvalue()


def noise(height: int, width: int, seed: int = 0) -> bytes:
    """A JPEG of noise."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)).save(file, "JPEG")
    return file.getvalue()


def json_of(items: str, count: int, *, shape: Sequence[int] = (1, 33, 33, 3)) -> bytes:
    """A request of the protocol whose data is so many times the same."""
    about = json.dumps({"name": "image", "shape": shape, "datatype": "UINT8"}, separators=(",", ":"))
    return f'{{"inputs":[{about[:-1]},"data":[{",".join([items] * count)}]}}]}}'.encode()


def form_of(files: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """A form with files, and its headers."""
    parts = [
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="%d"\r\n\r\n%s\r\n' % (place, file)
        for place, file in enumerate(files)
    ]
    return b"".join(parts) + b"--x--\r\n", {"Content-Type": "multipart/form-data; boundary=x"}


def post(target: Target, path: str, body: bytes, headers: dict[str, str] | None = None, timeout: float = 120) -> Answer:
    """Ask, and wait for the answer."""
    began, connection = time.monotonic(), http.client.HTTPConnection("127.0.0.1", target.port, timeout=timeout)
    try:
        connection.request("POST", path, body, headers or {})
        response = connection.getresponse()
        response.read()
        status = str(response.status)
    except OSError:
        status = GONE
    except http.client.HTTPException:
        status = GONE
    finally:
        connection.close()
    return Answer(status, time.monotonic() - began)


def images(files: Sequence[bytes], *, at_once: int = 1) -> Case:
    """Image files, one after another or at once."""

    def case(target: Target) -> list[Answer]:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda file: post(target, "/v1/segment", file), files))

    return case


def largest(target: Target) -> list[Answer]:
    """The largest image that is not too large for the server, then eight of them at once."""
    side, first = 5792, Answer("413", 0.0)
    while first.status == "413":
        first = post(target, "/v1/segment", png(side, side))
        side = int(0.85 * side) if first.status == "413" else side
    with ThreadPoolExecutor(8) as pool:
        return [first, *pool.map(lambda file: post(target, "/v1/segment", file), [png(side, side)] * 8)]


def tensors(body: bytes, model: str, *, at_once: int = 1) -> Case:
    """Requests of the protocol, all at once."""

    def case(target: Target) -> list[Answer]:
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(lambda _: post(target, f"/v2/models/{model}/infer", body), range(at_once)))

    return case


def unfinished(target: Target) -> list[Answer]:
    """40 connections that send 31 MB of a body, and not its end."""
    size, body = 31_000_100, bytes(31_000_000)

    def one(_: int) -> Answer:
        began = time.monotonic()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", target.port), timeout=60) as connection:
            connection.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % size)
            with contextlib.suppress(OSError):
                connection.sendall(body)
            return Answer(connection.recv(100).split(b" ")[1].decode(), 0.0)  # a body may take half a minute: no deadline
        return Answer(GONE, time.monotonic() - began - 60)

    with ThreadPoolExecutor(40) as pool:
        return list(pool.map(one, range(40)))


def unread(target: Target) -> list[Answer]:
    """20 connections that ask 500 times for the description of all routes, and read nothing."""
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 500
    connections = [socket.create_connection(("127.0.0.1", target.port), timeout=2) for _ in range(20)]
    for connection in connections:
        with contextlib.suppress(OSError):
            connection.sendall(asked)
    time.sleep(5)
    for connection in connections:
        connection.close()
    return []


def messages(target: Target) -> list[Answer]:
    """24 gRPC messages of 30 MB at once, without the key that the server asks for."""
    body = bytes(30_000_000)

    def one(_: int) -> Answer:
        began = time.monotonic()
        with grpc.insecure_channel(f"127.0.0.1:{target.grpc_port}") as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            try:
                call(body, timeout=60)
                status = "OK"
            except grpc.RpcError as error:
                status = error.code().name
        return Answer(status, time.monotonic() - began)

    with ThreadPoolExecutor(24) as pool:
        return list(pool.map(one, range(24)))


def leaves(target: Target) -> list[Answer]:
    """A client that leaves a form of 8 images of 2 MP; then a small image, which is all that is counted."""
    body, headers = form_of([png(1000, 2000)] * 8)
    post(target, "/v1/segment", body, headers, timeout=0.5)
    return [post(target, "/v1/segment", png(96, 96))]


def cases(model: str) -> dict[str, Case]:
    """All of them, for a model of this name."""
    big, palette = png(4000, 8388), chunk(b"PLTE", bytes(3)) + chunk(b"tRNS", b"\xff")
    return {
        "4 kB PNG of 33.5 MP, three in turn": images([big] * 3),
        "the same, eight at once": images([big] * 8, at_once=8),
        "with a palette and tRNS, eight at once": images(
            [png(4000, 8388, bits=8, colour=3, before=palette)] * 8, at_once=8
        ),
        "the largest accepted image, then eight at once": largest,
        "WebP of 25 MP": images([webp(5000, 5000)]),
        "30 images of 1 MP in turn": images([noise(1000, 1000)] * 30),
        "32 MB of [] in JSON, four at once": tensors(json_of("[]", 10_600_000), model, at_once=4),
        "32 MB of {} in JSON": tensors(json_of("{}", 10_600_000), model),
        "16 million integers in JSON": tensors(json_of("1", 15_996_000, shape=(1, 2000, 2666, 3)), model),
        "PNG of 2.5 million chunks, four at once": images([png(40, 40, before=chunk(b"abCd", b"") * 2_500_000)] * 4, at_once=4),
        "40 unfinished bodies of 31 MB": unfinished,
        "24 gRPC messages of 30 MB without the key": messages,
        "20 clients that do not read": unread,
        "a client that disconnects after a form of 8 images": leaves,
    }  # fmt: skip


def sizes(target: Target) -> list[Answer]:
    """300 images, each of a size of its own."""
    return [post(target, "/v1/segment", png(40 + place % 20 * 8, 40 + place // 20 * 8)) for place in range(300)]


# --- what is seen ---


def mebibytes(pid: int, what: str = "VmRSS") -> float:
    """Resident memory of a process, now or (VmHWM) at most; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(what)), 0.0)


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextlib.contextmanager
def served(bundle: Path, group: Path | None, *, key: bool) -> Iterator[Target]:
    """Keep a server running, in a control group where there is one."""
    ports = free_port(), free_port()
    join = "" if group is None else f"echo $$ > {group}/cgroup.procs && "
    environment = {**os.environ, **({"DDCAT_SERVE_API_KEY": "a-long-secret"} if key else {})}
    options = ["--threads", "1", "--port", str(ports[0]), "--grpc-port", str(ports[1])]
    python = [sys.executable, "-c", "from ddcat.cli import serve; serve()"]
    line = ["bash", "-c", f'{join}exec "$0" "$@"', *python, "run", str(bundle), *options]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment) as process:
        assert process.stdout is not None
        try:
            while not process.stdout.readline().startswith("listening at "):
                assert process.poll() is None, "the server did not start"
            time.sleep(1)
            yield Target(*ports, process.pid)
        finally:
            process.kill()


def waits(target: Target, ended: threading.Event) -> float:
    """Ask for health until the end; gives the longest wait in seconds."""
    longest = 0.0
    while not ended.wait(0.1):
        began = time.monotonic()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=60)
            connection.request("GET", "/v2/health/live")
            connection.getresponse().read()
            connection.close()
        except (OSError, http.client.HTTPException):
            longest = max(longest, 60.0)
        longest = max(longest, time.monotonic() - began)
    return longest


def measure(case: Case, bundle: Path, group: Path | None) -> dict[str, Any]:
    """Run one case."""
    with served(bundle, group, key=case is messages) as target, ThreadPoolExecutor(1) as pool:
        start, ended = mebibytes(target.pid), threading.Event()
        health = pool.submit(waits, target, ended)
        try:
            answers = case(target)
        finally:
            ended.set()
        longest, peak, began = health.result(), mebibytes(target.pid, "VmHWM"), time.monotonic()
        while (after := mebibytes(target.pid)) > 1.2 * start and time.monotonic() - began < SETTLE:
            time.sleep(0.5)
        slowest = max((answer.seconds for answer in answers), default=0.0)
        found = {
            "statuses": dict(sorted(Counter(answer.status for answer in answers).items())),
            "slowest_seconds": round(slowest, 2),
            "health_seconds": round(longest, 2),
            "start_mib": round(start),
            "peak_mib": round(peak),
            "after_mib": round(after),
            "settled_seconds": round(time.monotonic() - began, 1),
        }
        within = slowest <= DEADLINE + MARGIN and longest <= 1 and 0 < after <= 1.2 * start and peak < LIMIT
        return found | {"within_limits": within and GONE not in found["statuses"]}


def table(found: dict[str, Any], before: dict[str, Any] | None) -> str:
    """Write the figures, beside those before."""
    rows = [
        "| case | version | answers | slowest, s | health, s | start, MiB | peak | after | within the limits |",
        "|---|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for name, case in found["cases"].items():
        for tree, one in (("before", (before or {"cases": {}})["cases"].get(name)), ("now", case)):
            if one is not None:
                answers = ", ".join(f"{count} x {status}" for status, count in one["statuses"].items()) or "-"
                numbers = [one[key] for key in ("slowest_seconds", "health_seconds", "start_mib", "peak_mib", "after_mib")]
                within = "yes" if one["within_limits"] else "**no**"
                rows.append(f"| {name} | {tree} | {answers} | {' | '.join(map(str, numbers))} | {within} |")
    return "\n".join(rows) + "\n"


def processor() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


def main() -> None:
    """Serve, send, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--openvino", type=Path, help="a bundle of OpenVINO that takes images of any size")
    parser.add_argument("--cgroup", type=Path, help="a folder of the control group in which servers run")
    parser.add_argument("--only", help="cases whose name holds this text")
    parser.add_argument("--before", type=Path, help="OUT.json of another tree")
    parser.add_argument("--out", type=Path, required=True, help="without its suffix")
    arguments = parser.parse_args()
    model = json.loads((arguments.bundle / "manifest.json").read_text(encoding="utf-8"))["name"]
    todo: dict[str, tuple[Case, Path]] = {name: (case, arguments.bundle) for name, case in cases(model).items()}
    todo["images of 300 sizes"] = sizes, arguments.bundle
    if arguments.openvino is not None:
        todo["images of 300 sizes, OpenVINO"] = sizes, arguments.openvino
    before = None if arguments.before is None else json.loads(arguments.before.read_text(encoding="utf-8"))
    machine = {"processor": processor(), "cores": os.cpu_count(), "load_at_start": os.getloadavg()[0]}
    found: dict[str, Any] = {}
    for name, (case, bundle) in todo.items():
        if (arguments.only or "") in name:
            found[name] = measure(case, bundle, arguments.cgroup)
            print(name, found[name], flush=True)
            now = {"load_at_end": os.getloadavg()[0]}
            result = {"machine": machine | now, "python": platform.python_version(), "cases": found}
            write_text(arguments.out.with_suffix(".json"), json.dumps(result, indent=1) + "\n")
            write_text(arguments.out.with_suffix(".md"), table(result, before))


if __name__ == "__main__":
    run(main)
