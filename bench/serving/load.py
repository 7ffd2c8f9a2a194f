"""
The server under load, beside the bare engine and LitServe with the same engine.

    pip install litserve aiohttp
    python bench/serving/load.py BUNDLE --size 480x640 --out docs/results/serving-cpu

Open loop: requests come by a Poisson process, whether the ones before are answered or not. Everything runs on two cores: the
engine, with one thread, on the first; the server, its codec threads and the clients on the second. Each arm is a process of
its own, and so are the clients. The arms take turns, for a machine's speed drifts, and what was seen is pooled. It writes
OUT.json and OUT.md.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ddcat.atomic_files import write_text
from ddcat.bundle import open_bundle
from ddcat.cli_support import parse_size, run
from ddcat.errors import DdcatError

ENGINE_CORE, OTHER_CORE = 0, 1
BATCHES = (1, 2, 4, 8)
WARM_UP = 3.0  # seconds
LOADS = (("half", 0.5, "one"), ("nearly full", 0.9, "one"), ("twice", 2.0, "one"), ("twice, two sizes", 2.0, "two"))
SOON = 0.05  # seconds in which a refusal is to be told

Seen = list[tuple[int, float]]  # the status of each answer, 0 where none came, and the seconds until it did


def main() -> None:
    """Run one role, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--size", default="480x640", help="of the images, HEIGHTxWIDTH")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each load in each turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--deadline", type=float, default=2.0, help="seconds in which an answer is wanted")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--role", choices=["bare", "ours", "clients"], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=8765, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role is None:
        everything(arguments)
    else:
        {"bare": bare, "ours": ours, "clients": clients}[arguments.role](arguments)


# --- what is measured ---


def everything(arguments: argparse.Namespace) -> None:
    """Run all arms and write what was found."""
    if arguments.out is None:
        raise DdcatError("--out: use FILE without its suffix")
    if len(os.sched_getaffinity(0)) < 2:
        raise DdcatError("this needs two cores")
    height, width = parse_size(arguments.size)
    sizes = {"one": arguments.size, "two": f"{arguments.size},{width}x{height}"}
    capacities: list[dict[str, float]] = []
    seen: dict[str, list[Seen]] = {}
    for turn in range(arguments.turns):
        capacities.append(json.loads(of_role(arguments, "bare")))
        capacity = max(capacities[-1].values())
        print(f"turn {turn + 1} of {arguments.turns}: {capacity:.2f} images a second without a server", flush=True)
        for arm in ("ours", *THEIRS):
            with served(arguments, arm):
                for name, share, number in LOADS:
                    rate = (
                        "--rate",
                        str(share * capacity),
                        "--sizes",
                        sizes[number],
                        "--path",
                        PATHS[arm],
                        "--seed",
                        str(turn),
                    )
                    raw = json.loads(of_role(arguments, "clients", *rate))
                    seen.setdefault(f"{arm}, {name}", []).append([(status, seconds) for status, seconds in raw])
    rates = {batch: float(np.mean([rates[batch] for rates in capacities])) for batch in capacities[0]}
    found: dict[str, Any] = {
        "size": arguments.size, "seconds": arguments.seconds, "turns": arguments.turns, "deadline": arguments.deadline,
        "bare": rates, "capacity": float(np.mean([max(rates.values()) for rates in capacities])),
        "loads": {name: summary(turns, arguments) for name, turns in seen.items()},
    }  # fmt: skip
    found["targets"] = targets(found)
    found["environment"] = environment()
    write_text(arguments.out.with_suffix(".json"), json.dumps(found, indent=1) + "\n")
    write_text(arguments.out.with_suffix(".md"), markdown(found))
    print(markdown(found))


def summary(turns: Sequence[Seen], arguments: argparse.Namespace) -> dict[str, Any]:
    """Pool what clients saw: rates, latencies of what was answered, refusals."""
    seen, seconds = [one for turn in turns for one in turn], arguments.seconds * len(turns)
    answered = [took for status, took in seen if status == 200]
    good = [took for took in answered if took <= arguments.deadline]
    refused = [took for status, took in seen if status in (429, 503)]
    statuses = [status for status, _ in seen]
    return {
        "offered": len(seen) / seconds,
        "goodput": len(good) / seconds,
        "p50": float(np.quantile(answered, 0.5)) if answered else None,
        "p99": float(np.quantile(answered, 0.99)) if answered else None,
        "late": len(answered) - len(good),
        "refused": len(refused),
        "refusals_soon": float(np.mean([took <= SOON for took in refused])) if refused else 1.0,
        "statuses": {str(status): statuses.count(status) for status in sorted(set(statuses))},
    }


def targets(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What a server should reach, and whether it did."""
    capacity, loads = found["capacity"], found["loads"]
    ours, mixed = loads["ours, twice"], loads["ours, twice, two sizes"]
    rows = [
        ("goodput / capacity, at twice the capacity", ours["goodput"] / capacity, ">=", 0.9),
        ("share of rejections sent within 50 ms, at twice the capacity", ours["refusals_soon"], ">=", 0.95),
        ("p99 / deadline, at twice the capacity", (ours["p99"] or float("inf")) / found["deadline"], "<=", 1.0),
        ("goodput with one size / with two sizes, at twice the capacity", ours["goodput"] / mixed["goodput"], "<=", 1.15),
        (
            "LitServe's best goodput / ours, at twice the capacity",
            max(loads[f"{arm}, twice"]["goodput"] for arm in THEIRS) / ours["goodput"],
            "<=",
            1.0,
        ),
        ("our p99 / LitServe's best p99, at 90 % of the capacity", ratio(loads, "nearly full", "p99"), "<=", 1.0),
    ]
    return [
        {
            "what": what,
            "found": value,
            "limit": f"{sign} {limit:g}",
            "reached": value >= limit if sign == ">=" else value <= limit,
        }
        for what, value, sign, limit in rows
    ]


def ratio(loads: dict[str, Any], load: str, key: str) -> float:
    """Ours over LitServe's smallest."""
    own = loads[f"ours, {load}"][key]
    others = [loads[f"{arm}, {load}"][key] for arm in THEIRS]
    told = [other for other in others if other is not None]
    return float("inf") if own is None else own / min(told) if told else 0.0


def of_role(arguments: argparse.Namespace, role: str, *more: str) -> str:
    """Run a role in a process of its own; gives its last line."""
    done = subprocess.run([*line_of(arguments, role), *more], stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def line_of(arguments: argparse.Namespace, role: str) -> list[str]:
    """The command line of a role."""
    if role in THEIRS:
        program = Path(__file__).with_name("litserve_api.py")
        about = [arguments.bundle, arguments.port, arguments.deadline, THEIRS[role]]
        return [sys.executable, str(program), *map(str, about)]
    return [
        sys.executable, __file__, str(arguments.bundle), "--size", arguments.size, "--seconds", str(arguments.seconds),
        "--deadline", str(arguments.deadline), "--port", str(arguments.port), "--role", role,
    ]  # fmt: skip


@contextlib.contextmanager
def served(arguments: argparse.Namespace, arm: str) -> Iterator[None]:
    """Keep a server running."""
    import urllib.request  # noqa: PLC0415

    print(arm, flush=True)
    quiet = subprocess.DEVNULL
    with subprocess.Popen(line_of(arguments, arm), stdout=quiet, stderr=quiet, start_new_session=True) as process:
        try:
            for _ in range(240):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{arguments.port}{HEALTH[arm]}")
                    break
                time.sleep(0.25)
            else:
                raise DdcatError(f"{arm} did not start")
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # LitServe leaves processes behind


THEIRS = {"LitServe": 1, "LitServe, batches of 8": 8}  # most images in a batch
HEALTH = {"ours": "/v2/health/ready"} | dict.fromkeys(THEIRS, "/health")
PATHS = {"ours": "/v1/segment?preprocessed=true"} | dict.fromkeys(THEIRS, "/predict")


# --- the arms ---


class Pinned:
    """An engine whose thread stays on a core of its own."""

    def __init__(self, engine: Any) -> None:
        self._engine, self._pinned = engine, False

    def __getattr__(self, name: str) -> Any:
        """Be the engine."""
        return getattr(self._engine, name)

    def infer(self, images: Any) -> Any:
        """Segment, on the engine's core."""
        if not self._pinned:
            os.sched_setaffinity(0, {ENGINE_CORE})  # of this thread alone
            self._pinned = True
        return self._engine.infer(images)


def bare(arguments: argparse.Namespace) -> None:
    """Time the engine alone in batches."""
    from ddcat.engines import open_engine  # noqa: PLC0415

    os.sched_setaffinity(0, {ENGINE_CORE})
    height, width = parse_size(arguments.size)
    found = {}
    with open_engine(open_bundle(arguments.bundle), threads=1) as engine:
        for batch in BATCHES:
            images = np.random.default_rng(0).integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
            engine.infer(images)
            began, calls = time.perf_counter(), 0
            while time.perf_counter() - began < arguments.seconds / len(BATCHES):
                engine.infer(images)
                calls += 1
            found[batch] = calls * batch / (time.perf_counter() - began)
    print(json.dumps(found))


def ours(arguments: argparse.Namespace) -> None:
    """Serve with our own server."""
    import uvicorn  # noqa: PLC0415

    from ddcat_serve.http.app import create_app  # noqa: PLC0415
    from ddcat_serve.inference import model_registry  # noqa: PLC0415
    from ddcat_serve.settings import Settings  # noqa: PLC0415

    os.sched_setaffinity(0, {OTHER_CORE})
    opened = model_registry.open_engine
    model_registry.open_engine = lambda *a, **k: Pinned(opened(*a, **k))  # type: ignore[assignment]
    settings = Settings(timeout=arguments.deadline, codec_threads=1)
    with model_registry.load_models([arguments.bundle], settings=settings, threads=1) as loaded:
        uvicorn.run(create_app(loaded, settings), port=arguments.port, log_level="warning", access_log=False)


# --- the clients ---


def clients(arguments: argparse.Namespace) -> None:
    """Ask by a Poisson process and say what was seen."""
    os.sched_setaffinity(0, {OTHER_CORE})
    print(json.dumps(asyncio.run(ask(arguments))))


async def ask(arguments: argparse.Namespace) -> Seen:
    """Ask; gives what each request saw."""
    import aiohttp  # noqa: PLC0415
    import simplejpeg  # type: ignore[import-untyped]  # noqa: PLC0415

    random = np.random.default_rng(arguments.seed)
    files = []
    for size in arguments.sizes.split(","):
        height, width = parse_size(size)
        smooth = np.kron(random.integers(0, 256, (-(-height // 16), -(-width // 16), 3)), np.ones((16, 16, 1)))
        files.append(simplejpeg.encode_jpeg(smooth[:height, :width].astype(np.uint8), quality=90))
    seen: list[tuple[float, int, float]] = []  # when it came, its status, how long it took

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=4 * arguments.deadline)
    ) as session:

        async def one(number: int, at: float) -> None:
            form = aiohttp.FormData()
            form.add_field("image", files[number % len(files)], filename="image.jpg", content_type="image/jpeg")
            address = f"http://127.0.0.1:{arguments.port}{arguments.path}"
            began = time.perf_counter()
            try:
                async with session.post(address, data=form) as response:
                    await response.read()
                    status = response.status
            except (aiohttp.ClientError, TimeoutError):
                status = 0
            seen.append((at, status, time.perf_counter() - began))

        tasks = []
        start = time.perf_counter()
        at = 0.0
        while at < WARM_UP + arguments.seconds:
            at += float(random.exponential(1 / arguments.rate))
            await asyncio.sleep(max(0.0, start + at - time.perf_counter()))
            tasks.append(asyncio.create_task(one(len(tasks), at)))
        await asyncio.gather(*tasks)
    return [(status, seconds) for at, status, seconds in seen if at >= WARM_UP]


# --- what is written ---


def environment() -> dict[str, Any]:
    """Where it ran."""
    import litserve as ls  # noqa: PLC0415
    import torch  # noqa: PLC0415

    from ddcat_bench.describe import describe_environment  # noqa: PLC0415

    found: dict[str, Any] = describe_environment(torch.device("cpu"), 0.0).model_dump(mode="json")
    found["versions"]["litserve"] = ls.__version__
    return found


def markdown(found: dict[str, Any]) -> str:
    """Write the tables."""
    bare_rates = ", ".join(f"{rate:.2f} in batches of {batch}" for batch, rate in found["bare"].items())
    lines = [
        "# The server under load",
        "",
        "This page compares the server with the bare engine and with LitServe, at and above the capacity of the engine.",
        "",
        "```sh",
        "pip install litserve aiohttp",
        f"python bench/serving/load.py BUNDLE --size {found['size']} --seconds {found['seconds']:g} --turns {found['turns']} "
        f"--deadline {found['deadline']:g} --out FILE",
        "```",
        "",
        f"- Requests are JPEG files of {found['size']}, and arrive as a Poisson process. Answers are masks as PNG.",
        "- The **capacity** is the rate of the bare engine, with one thread on its own core, in images a second: "
        f"{bare_rates}. The best of each turn is the capacity, {found['capacity']:.2f} on average.",
        "- The **loads** are half of the capacity, 90 % (nearly full), twice the capacity, and twice with two image sizes.",
        f"- An answer is **good** if it arrives within {found['deadline']:g} s.",
        "- **LitServe** has the same engine, decoder, encoder and time-out. It was measured without batches, and with batches "
        "of up to 8.",
        "",
        "| server | load | offered/s | good/s | share of capacity | p50, ms | p99, ms | rejected | in 50 ms | other answers |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, row in found["loads"].items():
        arm = next(arm for arm in (*reversed(THEIRS), "ours") if name.startswith(f"{arm}, "))
        what = name.removeprefix(f"{arm}, ")
        others = {status: count for status, count in row["statuses"].items() if status not in ("200", "429", "503")}
        told = ", ".join(f"{count} x {'none' if status == '0' else status}" for status, count in others.items())
        late = f"{row['late']} late" if row["late"] else ""
        lines.append(
            f"| {'ddcat-serve' if arm == 'ours' else arm} | {what} | {row['offered']:.1f} | {row['goodput']:.2f} | "
            f"{row['goodput'] / found['capacity']:.2f} | {milliseconds(row['p50'])} | {milliseconds(row['p99'])} | "
            f"{row['refused']} | "
            f"{row['refusals_soon']:.1%} | {', '.join(filter(None, (told, late))) or '-'} |"
        )
    lines += ["", "| target | measured | limit | reached |", "| --- | ---: | ---: | --- |"]
    for row in found["targets"]:
        lines.append(f"| {row['what']} | {row['found']:.3f} | {row['limit']} | {'yes' if row['reached'] else '**no**'} |")
    machine = ", ".join(map(str, found["environment"]["machine"].values()))
    versions = ", ".join(f"{name} {version}" for name, version in found["environment"]["versions"].items())
    return "\n".join(
        [
            *lines,
            "",
            f"- machine: {machine}",
            f"- versions: {versions}",
            f"- code: {found['environment']['git_commit'] or 'not from a checkout'}",
            "",
        ]
    )


def milliseconds(seconds: float | None) -> str:
    """Write a latency; - where nothing was answered."""
    return "-" if seconds is None else f"{1000 * seconds:.0f}"


if __name__ == "__main__":
    run(main)
