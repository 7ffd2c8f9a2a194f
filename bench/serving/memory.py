"""
The memory of a server over many requests of many kinds, good and bad.

    pip install aiohttp
    python bench/serving/memory.py demo/bundle --requests 100000 --out docs/results/serving-memory

A quarter of the requests are images, as JPEG, PNG or WebP, in four sizes, answered as PNG, JSON or bytes; the others are
tensors in JSON and binary, several images at once, damaged files, wrong names, clients that leave, metadata and metrics. It
writes OUT.json, with the server's resident memory, threads and open files once a second, and OUT.png. Linux only.
"""

import argparse
import asyncio
import collections
import contextlib
import io
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from ddcat.atomic_files import write_bytes, write_text
from ddcat.bundle import open_bundle
from ddcat.cli_support import run
from ddcat.errors import DdcatError
from ddcat.progress import progress

SIZES = ((64, 64), (64, 96), (96, 64), (96, 96))
FORMS = ("image/png", "application/json", "application/octet-stream")
AT_ONCE = 8
WARM = 0.1  # share of the requests after which memory is to stay as it is


def main() -> None:
    """Serve, ask, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--out", type=Path, required=True, help="without its suffix")
    arguments = parser.parse_args()
    if not Path("/proc/self/status").exists():
        raise DdcatError("this machine has no /proc: run it on Linux")
    with served(arguments.bundle) as process:
        address = next(line for line in process.stdout if line.startswith("listening at ")).split()[-1]
        samples, statuses = asyncio.run(
            ask(address, kinds(open_bundle(arguments.bundle).manifest.name), process.pid, arguments.requests)
        )
        if process.poll() is not None:
            raise DdcatError(f"the server ended with exit status {process.returncode}")
    found = {
        "bundle": open_bundle(arguments.bundle).manifest.name,
        "requests": arguments.requests,
        "statuses": dict(sorted(statuses.items())),
        **summary(samples, arguments.requests),
        "environment": environment(samples[-1]["seconds"]),
        "samples": samples,
    }
    write_text(arguments.out.with_suffix(".json"), json.dumps(found) + "\n")
    write_bytes(arguments.out.with_suffix(".png"), plot(samples, found))
    print(json.dumps({name: value for name, value in found.items() if name != "samples"}, indent=1))


@contextlib.contextmanager
def served(bundle: Path) -> Iterator["subprocess.Popen[str]"]:
    """Keep a server running."""
    command = Path(sys.executable).with_name("ddcat-serve")
    line = [command, "run", bundle, "--port", "0", "--threads", "1"]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)


# --- what is asked ---

Request = dict[str, Any]  # what aiohttp's `request` takes, and `leave`: seconds after which the client goes


def kinds(model: str) -> dict[str, Callable[[int], Request]]:
    """Give requests by their kind, each made of a number."""
    random = np.random.default_rng(0)
    pixels = {
        size: np.kron(random.integers(0, 256, (4, 4, 3)), np.ones((size[0] // 4, size[1] // 4, 1))).astype(np.uint8)
        for size in SIZES
    }
    files = {(size, form): encoded(array, form) for size, array in pixels.items() for form in ("JPEG", "PNG", "WEBP")}
    infer = f"/v2/models/{model}/infer"

    def image(form: str) -> Callable[[int], Request]:
        def request(number: int) -> Request:
            accept = FORMS[number % len(FORMS)]
            file = files[SIZES[number % 4], form]
            return {"path": "/v1/segment?preprocessed=true", "data": file, "headers": {"Accept": accept}}

        return request

    def damaged(number: int) -> Request:
        broken = bytearray(files[SIZES[number % 4], ("JPEG", "PNG", "WEBP")[number % 3]])
        for place in np.random.default_rng(number).integers(12, len(broken), 6):
            broken[place] ^= 0x55
        return {"path": "/v1/segment", "data": bytes(broken)}

    def several(number: int) -> Request:
        return {"path": "/v1/segment", "form": [files[size, "JPEG"] for size in SIZES[: 1 + number % 4]]}

    def tensor(number: int) -> Request:
        array = pixels[SIZES[0]][None]
        about = {"name": "image", "shape": list(array.shape), "datatype": "UINT8", "data": array.ravel().tolist()}
        return {"path": infer, "json": {"inputs": [about]}}

    def binary(number: int) -> Request:
        array = pixels[SIZES[number % 4]][None]
        about = {
            "name": "image",
            "shape": list(array.shape),
            "datatype": "UINT8",
            "parameters": {"binary_data_size": array.nbytes},
        }
        head = json.dumps({"inputs": [about], "parameters": {"binary_data_output": True}}).encode()
        return {"path": infer, "data": head + array.tobytes(), "headers": {"Inference-Header-Content-Length": str(len(head))}}

    def wrong(number: int) -> Request:
        about = {"name": f"x{number}", "shape": [1], "datatype": "FP32", "data": [number]}
        return {"path": infer, "json": {"inputs": [about]}}

    return {
        "JPEG": image("JPEG"),
        "PNG": image("PNG"),
        "WebP": image("WEBP"),
        "damaged image": damaged,
        "no image": lambda number: {"path": "/v1/segment", "data": np.random.default_rng(number).bytes(500)},
        "several images": several,
        "JSON tensor": tensor,
        "binary tensor": binary,
        "wrong tensor": wrong,
        "wrong name": lambda number: {"path": f"/v2/models/none{number}/infer", "json": {}},
        "client that leaves": lambda number: image("PNG")(number) | {"leave": 0.001 * (number % 7)},
        "metadata": lambda number: {"path": ("/v2", f"/v2/models/{model}", "/metrics")[number % 3], "method": "GET"},
    }  # fmt: skip


def encoded(pixels: Any, form: str) -> bytes:
    """Write an image file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


async def ask(
    address: str, made: dict[str, Callable[[int], Request]], pid: int, requests: int
) -> tuple[list[dict[str, float]], collections.Counter[str]]:
    """Send all kinds in turn; gives samples of the server's state, and how often each status came."""
    import aiohttp  # type: ignore[import-not-found]  # noqa: PLC0415

    statuses: collections.Counter[str] = collections.Counter()
    numbers, began, makers = itertools.count(), time.monotonic(), list(made.values())
    samples = [state(pid, 0, 0.0)]
    with progress("asking", requests, unit="requests") as advance:
        async with aiohttp.ClientSession(address, timeout=aiohttp.ClientTimeout(total=60)) as session:

            async def one(request: Request) -> str:
                if "form" in request:
                    form = aiohttp.FormData()
                    for place, file in enumerate(request.pop("form")):
                        form.add_field("image", file, filename=f"{place}.jpg")
                    request["data"] = form
                leave, method, path = request.pop("leave", None), request.pop("method", "POST"), request.pop("path")
                try:
                    async with asyncio.timeout(leave), session.request(method, path, **request) as response:
                        await response.read()
                        return str(response.status)
                except TimeoutError:
                    if leave is None:
                        raise
                    return "left"

            async def client() -> None:
                while (number := next(numbers)) < requests:
                    statuses[await one(makers[number % len(makers)](number // len(makers)))] += 1
                    advance(1)
                    seconds = time.monotonic() - began
                    if seconds - samples[-1]["seconds"] >= 1:
                        samples.append(state(pid, statuses.total(), seconds))

            await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    samples.append(state(pid, statuses.total(), time.monotonic() - began))
    return samples, statuses


# --- what is seen ---


def state(pid: int, requests: int, seconds: float) -> dict[str, float]:
    """Look at the server: MiB resident, threads, open files."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    about = dict(line.split(":", 1) for line in lines)
    return {
        "requests": requests,
        "seconds": round(seconds, 1),
        "mib": round(int(about["VmRSS"].split()[0]) / 1024, 1),
        "threads": int(about["Threads"]),
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }


def summary(samples: list[dict[str, float]], requests: int) -> dict[str, float]:
    """Give the memory after the first requests, at the end, and the slope of a line through what is between."""
    warm = [sample for sample in samples if sample["requests"] >= WARM * requests]
    x, y = np.array([sample["requests"] for sample in warm]), np.array([sample["mib"] for sample in warm])
    slope = float(np.polyfit(x / 10_000, y, 1)[0]) if len(warm) > 1 else float("nan")
    return {
        "mib_when_warm": warm[0]["mib"],
        "mib_at_the_end": warm[-1]["mib"],
        "mib_at_most": max(sample["mib"] for sample in samples),
        "mib_per_10000_requests": round(slope, 3),
        "threads_when_warm": warm[0]["threads"],
        "threads_at_the_end": warm[-1]["threads"],
        "files_when_warm": warm[0]["files"],
        "files_at_the_end": warm[-1]["files"],
    }


def environment(seconds: float) -> dict[str, Any]:
    """Where it ran."""
    import torch  # noqa: PLC0415

    from ddcat_bench.describe import describe_environment  # noqa: PLC0415

    found: dict[str, Any] = describe_environment(torch.device("cpu"), seconds).model_dump(mode="json")
    return found


def plot(samples: list[dict[str, float]], found: dict[str, Any]) -> bytes:
    """Draw the memory over the requests."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([sample["requests"] for sample in samples], [sample["mib"] for sample in samples])
    axes.set_ylim(0, 1.25 * found["mib_at_most"])
    axes.set_xlabel("requests")
    axes.set_ylabel("resident memory of the server, MiB")
    axes.set_title(
        f"{found['mib_per_10000_requests']:+.2f} MiB per 10,000 requests after the first {WARM:.0%}; "
        f"{found['threads_at_the_end']} threads, {found['files_at_the_end']} open files at the end",
        fontsize=9,
    )
    axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


if __name__ == "__main__":
    run(main)
