"""
Swaps of a model in a server under load, bundles that must never answer, and the memory over many swaps.

    pip install aiohttp
    python bench/serving/swaps.py demo/bundle --out docs/results/serving-swaps

One server has a repository of two versions of the bundle and of four that must be refused: tampered, unsigned, refused by the
gate, and with golden labels that its engine does not give. Clients first find its capacity, then ask by a Poisson process at
a share of it: for a while without a swap, and as long with 20 swaps, each followed by a load of a bad bundle. Then a second
server swaps 50 times. It writes OUT.json and OUT.md. Linux only.
"""

import argparse
import asyncio
import collections
import contextlib
import dataclasses
import io
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ddcat.atomic_files import write_text
from ddcat.bundle import Bundle, entries, open_bundle, write_bundle
from ddcat.cli_support import parse_size, run
from ddcat.engines.golden import pack, read_golden
from ddcat.errors import DdcatError
from ddcat.passport import Finding, Passport, write_passport
from ddcat.progress import progress

NAME, KEY = "model", "a key for this run"
CLIENTS = 8  # at once, while the capacity is looked for
BAD = {"3": "tampered", "4": "unsigned", "5": "refused by the gate", "6": "with other golden labels"}
WARM = 5  # swaps after which memory is to stay as it is


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a request got: status 0 is none."""

    at: float  # seconds from the start to when it was sent
    seconds: float
    status: int
    digest: str  # of the bundle that answered


def main() -> None:
    """Serve, swap, and write what was seen."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", default="240x320", help="of the images, HEIGHTxWIDTH")
    parser.add_argument("--seconds", type=float, default=120.0, help="without swaps, and again with them")
    parser.add_argument("--load", type=float, default=0.8, help="share of the capacity")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--memory-swaps", type=int, default=50)
    parser.add_argument("--threads", type=int, default=1, help="of each engine")
    parser.add_argument("--out", type=Path, required=True, help="without its suffix")
    arguments = parser.parse_args()
    if not Path("/proc/self/status").exists():
        raise DdcatError("this machine has no /proc: run it on Linux")
    height, width = parse_size(arguments.size)
    body = encoded(np.random.default_rng(0).integers(0, 256, (-(-height // 16), -(-width // 16), 3)), height, width)
    with tempfile.TemporaryDirectory() as folder:
        good, public = fill(Path(folder), open_bundle(arguments.bundle))
        with served(Path(folder) / "models", public, arguments.threads) as (process, address):
            found = asyncio.run(under_load(address, body, arguments, good))
            if process.poll() is not None:
                raise DdcatError(f"the server ended with exit status {process.returncode}")
        with served(Path(folder) / "models", public, arguments.threads) as (process, address):
            found["memory"] = asyncio.run(over_swaps(address, body, process.pid, arguments.memory_swaps))
    found |= {
        "bundle": open_bundle(arguments.bundle).manifest.name,
        "size": arguments.size,
        "seconds": arguments.seconds,
        "swaps": arguments.swaps,
        "threads": arguments.threads,
        "environment": environment(),
    }
    write_text(arguments.out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    write_text(arguments.out.with_suffix(".md"), markdown(found))
    print(markdown(found))


# --- the repository ---


def fill(folder: Path, bundle: Bundle) -> tuple[set[str], Path]:
    """Write two good versions and four bad ones; gives the digests of the good ones, and the public key."""
    private, public = keys(folder)
    models, manifest = folder / "models" / NAME, bundle.manifest
    good = set()
    for version, name in (("1", "one"), ("2", "two"), ("3", "three"), ("4", "four"), ("5", "five")):
        key = None if BAD.get(version) == "unsigned" else private
        written = write_bundle(models / version, manifest.model_copy(update={"name": name}), bundle.files, key=key)
        if version in ("1", "2"):
            good.add(written.digest)
        elif BAD[version] == "refused by the gate":
            finding = Finding(name="mIoU", verdict="refuse", found="10 points lost", limit="1", reason="for this test.")
            write_passport(
                written,
                Passport(
                    manifest_sha256=written.digest, verdict="refuse", budget="default", data="none", images=1,
                    findings=(finding,), versions={},
                ),
                key=private,
            )  # fmt: skip
    engine = models / "3" / manifest.engine.file
    content = bytearray(engine.read_bytes())
    content[len(content) // 2] ^= 1
    engine.write_bytes(content)
    if manifest.golden is None:
        raise DdcatError("the bundle has no golden images: use one that ddcat export wrote with them")
    classes = len(manifest.classes)
    wrong = [example._replace(labels=(example.labels + 1) % classes) for example in read_golden(bundle)]
    files = {**bundle.files, manifest.golden.file: pack(wrong)}
    write_bundle(models / "6", manifest.model_copy(update={"name": "six", "files": entries(files)}), files, key=private)
    return good, public  # a server begins with the newest version that it does not refuse, the second


def keys(folder: Path) -> tuple[Path, Path]:
    """Write a pair of keys with openssl."""
    private, public = folder / "key.pem", folder / "key.pub"
    for line in (
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private],
        ["openssl", "ec", "-in", private, "-pubout", "-out", public],
    ):
        subprocess.run(line, check=True, capture_output=True)
    return private, public


@contextlib.contextmanager
def served(models: Path, public: Path, threads: int) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Keep a server running; gives its process and address."""
    command = shutil.which("ddcat-serve", path=str(Path(sys.executable).parent)) or "ddcat-serve"
    line = [command, "run", "--repository", models, "--require-signature", public, "--api-key", KEY, "--port", "0"]
    line += ["--threads", str(threads)]
    with subprocess.Popen(list(map(str, line)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, next(text for text in process.stdout if text.startswith("listening at ")).split()[-1]
        finally:
            process.terminate()
            process.wait(60)


# --- what is asked ---


def encoded(pixels: Any, height: int, width: int) -> bytes:
    """Write a smooth image as JPEG."""
    file = io.BytesIO()
    smooth = np.kron(pixels, np.ones((16, 16, 1)))[:height, :width].astype(np.uint8)
    Image.fromarray(smooth).save(file, "JPEG", quality=90)
    return file.getvalue()


class Client:
    """Sends images and loads, and keeps what was answered."""

    def __init__(self, session: Any, body: bytes) -> None:
        self._session, self._body = session, body
        self._start = time.perf_counter()
        self.answers: list[Answer] = []

    async def segment(self) -> None:
        """Send an image."""
        began, status, digest = time.perf_counter(), 0, ""
        with contextlib.suppress(OSError, TimeoutError):  # aiohttp's errors of a connection are OSErrors
            async with self._session.post("/v1/segment", data=self._body) as response:
                await response.read()
                status, digest = response.status, response.headers.get("X-Ddcat-Bundle", "")
        self.answers.append(Answer(began - self._start, time.perf_counter() - began, status, digest))

    async def load(self, version: str) -> tuple[int, float, str]:
        """Load a version; gives the status, the seconds, and the error."""
        config = json.dumps({"version_policy": {"specific": {"versions": [int(version)]}}})
        began = time.perf_counter()
        path = f"/v2/repository/models/{NAME}/load"
        async with self._session.post(path, json={"parameters": {"config": config}}) as response:
            told = await response.json()
            return response.status, time.perf_counter() - began, told.get("error", "")

    async def for_a_while(self, rate: float, seconds: float, seed: int) -> None:
        """Send images by a Poisson process, and wait for all answers."""
        random, tasks, start, at = np.random.default_rng(seed), [], time.perf_counter(), 0.0
        while (at := at + float(random.exponential(1 / rate))) < seconds:
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            tasks.append(asyncio.create_task(self.segment()))
        await asyncio.gather(*tasks)


@contextlib.asynccontextmanager
async def connected(address: str) -> Any:
    """Open connections to the server, as many as are needed."""
    import aiohttp  # type: ignore[import-not-found]  # noqa: PLC0415

    async with aiohttp.ClientSession(
        address,
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=2),  # before the server closes an idle connection, after 5 s
        timeout=aiohttp.ClientTimeout(total=300),
        headers={"Authorization": f"Bearer {KEY}"},
    ) as session:
        yield session


async def under_load(address: str, body: bytes, arguments: argparse.Namespace, good: set[str]) -> dict[str, Any]:
    """Find the capacity, and ask at a share of it without swaps and with them."""
    async with connected(address) as session:
        hurry, until = Client(session, body), time.perf_counter() + max(3.0, arguments.seconds / 10)

        async def one() -> None:
            while time.perf_counter() < until:
                await hurry.segment()

        began = time.perf_counter()
        await asyncio.gather(*(one() for _ in range(CLIENTS)))
        capacity = len(hurry.answers) / (time.perf_counter() - began)
        quiet = Client(session, body)
        await quiet.for_a_while(arguments.load * capacity, arguments.seconds, seed=1)
        swapped = Client(session, body)
        loads: list[dict[str, Any]] = []

        async def swap() -> None:
            with progress("swapping", arguments.swaps, unit="swaps") as advance:
                for number in range(arguments.swaps):
                    next_at = began + (number + 0.25) * arguments.seconds / arguments.swaps
                    await asyncio.sleep(max(0.0, next_at - time.perf_counter()))
                    for version in (str(1 + number % 2), str(3 + number % 4)):
                        at = time.perf_counter() - began
                        status, seconds, error = await swapped.load(version)
                        loads.append({"version": version, "at": at, "status": status, "seconds": seconds, "error": error})
                    advance(1)

        began = time.perf_counter()
        await asyncio.gather(swapped.for_a_while(arguments.load * capacity, arguments.seconds, seed=2), swap())
    everyone = [*hurry.answers, *quiet.answers, *swapped.answers]
    return {
        "capacity": capacity,
        "load": arguments.load,
        "quiet": summary(quiet.answers),
        "swapped": summary(swapped.answers),
        "versions_that_answered": len({answer.digest for answer in swapped.answers}),
        "answers_of_bad_bundles": sum(answer.status == 200 and answer.digest not in good for answer in everyone),
        "loads": loads,
    }


def summary(answers: list[Answer]) -> dict[str, Any]:
    """Give statuses and latencies."""
    seconds = [answer.seconds for answer in answers if answer.status == 200]
    p50, p99, most = np.quantile(seconds, [0.5, 0.99, 1.0]).tolist() if seconds else [float("nan")] * 3
    statuses = collections.Counter(str(answer.status) for answer in answers)
    failed = len(answers) - len(seconds)
    return {"requests": len(answers), "failed": failed, "statuses": statuses, "p50": p50, "p99": p99, "most": most}


async def over_swaps(address: str, body: bytes, pid: int, swaps: int) -> dict[str, Any]:
    """Swap many times, with some requests between; gives the server's state after each."""
    states = []
    async with connected(address) as session:
        client = Client(session, body)
        for number in range(swaps):
            for _ in range(5):
                await client.segment()
            status, _, error = await client.load(str(1 + number % 2))
            if status != 200:
                raise DdcatError(f"a swap failed: {error}")
            await asyncio.sleep(0.5)  # the old engine closes
            states.append(state(pid))
    warm = states[min(WARM, len(states) - 1) :]
    slope = float(np.polyfit(range(len(warm)), [each["mib"] for each in warm], 1)[0]) if len(warm) > 1 else float("nan")
    return {"swaps": swaps, "warm": warm[0], "end": warm[-1], "mib_per_swap": slope, "states": states}


def state(pid: int) -> dict[str, float]:
    """Look at the server: MiB resident, threads, open files."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    about = dict(line.split(":", 1) for line in lines)
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    return {"mib": round(int(about["VmRSS"].split()[0]) / 1024, 1), "threads": int(about["Threads"]), "files": files}


# --- what is written ---


def environment() -> dict[str, Any]:
    """Where it ran."""
    import torch  # noqa: PLC0415

    from ddcat_bench.describe import describe_environment  # noqa: PLC0415

    found: dict[str, Any] = describe_environment(torch.device("cpu"), 0.0).model_dump(mode="json")
    return found


def markdown(found: dict[str, Any]) -> str:
    """Write the page."""
    quiet, swapped, memory = found["quiet"], found["swapped"], found["memory"]
    swaps = [load for load in found["loads"] if load["version"] in ("1", "2")]
    took = sorted(load["seconds"] for load in swaps)
    ratio = swapped["p99"] / quiet["p99"]
    sizes = f"--size {found['size']} --seconds {found['seconds']:g} --load {found['load']} --swaps {found['swaps']}"
    more = f"--memory-swaps {memory['swaps']} --threads {found['threads']}"
    lines = [
        "# Swaps under load",
        "",
        "```sh",
        f"python bench/serving/swaps.py demo/bundle {sizes} {more} --out docs/results/serving-swaps",
        "```",
        "",
        f"The bundle is `{found['bundle']}`. The images are JPEG files of {found['size']}. Each engine has {found['threads']} "
        f"thread(s), and the clients run on the same machine. {CLIENTS} clients that wait for their answers get "
        f"{found['capacity']:.1f} a second. Requests arrive as a Poisson process at {found['load']:.0%} of that rate:",
        "",
        "| | requests | failed | median, ms | p99, ms | longest, ms |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for what, row in (("no swap", quiet), (f"{len(swaps)} swaps", swapped)):
        lines.append(
            f"| {what} | {row['requests']} | {row['failed']} | {1000 * row['p50']:.1f} | {1000 * row['p99']:.1f} | "
            f"{1000 * row['most']:.1f} |"
        )
    succeeded = sum(load["status"] == 200 for load in swaps)
    lines += [
        "",
        f"The p99 with swaps is {ratio:.2f} times that without. {succeeded} of {len(swaps)} swaps succeeded; from the call to "
        f"the switch they took {took[len(took) // 2]:.2f} s (median), {took[-1]:.2f} s at most.",
        "",
        "After each swap one of these was loaded, too:",
        "",
        "| bundle | loads | refused |",
        "|---|---:|---:|",
    ]
    for version, what in BAD.items():
        tried = [load for load in found["loads"] if load["version"] == version]
        lines.append(f"| {what} | {len(tried)} | {sum(load['status'] == 400 for load in tried)} |")
    slope = memory["mib_per_swap"]
    lines += [
        "",
        f"{found['answers_of_bad_bundles']} answers came from one of these bundles: each answer names its bundle by digest.",
        "",
        f"Another server made {memory['swaps']} swaps, with five requests between two swaps:",
        "",
        f"| | after {min(WARM, memory['swaps'] - 1) + 1} swaps | at the end |",
        "|---|---:|---:|",
        f"| resident memory, MiB | {memory['warm']['mib']} | {memory['end']['mib']} |",
        f"| threads | {memory['warm']['threads']} | {memory['end']['threads']} |",
        f"| open files | {memory['warm']['files']} | {memory['end']['files']} |",
        "",
        f"Between these two points the memory {'rises' if slope > 0 else 'falls'} by {abs(slope):.3f} MiB per swap "
        "(a fitted line).",
        "",
    ]
    about = found["environment"]["machine"]
    machine = f"{about['processor']}, {about['cores']} cores, {about['memory_gib']} GiB, {about['system']}"
    versions = ", ".join(f"{name} {version}" for name, version in found["environment"]["versions"].items())
    commit = found["environment"]["git_commit"] or "not from a checkout"
    return "\n".join([*lines, f"- machine: {machine}", f"- versions: {versions}", f"- code: {commit}", ""])


if __name__ == "__main__":
    run(main)
