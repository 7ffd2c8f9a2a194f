"""
The whole line on a laptop: serve a model of the zoo, then make one's own from generated scenes, and look at all of it.

Run by `make demo`. All but the page is done by the console commands, each of which is printed before it runs.
"""

import argparse
import contextlib
import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from demo_page import METHOD_NAMES, Page, Stage, render_page, robustness_statements
from panels import Panel, Picture, make_panels
from PIL import Image
from rich.console import Console
from rich.table import Table
from server_process import ask, served

from ddcat.atomic_files import write_bytes, write_text
from ddcat.bundle import open_bundle
from ddcat.cli_support import run
from ddcat.engines import open_engine
from ddcat.engines.cores import physical_cores
from ddcat.engines.golden import read_golden
from ddcat_bench.attack.results import AttackResult
from ddcat_bench.fidelity.compare import FidelityResult
from ddcat_bench.inputs import main_branch, open_split, torch_device
from ddcat_bench.result_io import read_result
from ddcat_bench.timing.cpu_contention import watch_contention
from ddcat_bench.timing.results import SpeedResult
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.data import open_dataset
from ddcat_train.run.image_grid import to_png

MADE = ("zoo", "scenes", "runs", "results", "bundle", "bundle-undefended", "ready.png", "served.png", "index.html")
READY = "camvid-mobilenet_v2-pgd-at-4"  # of the zoo
LOOK = 0.5  # seconds in which others are watched before a stage
QUIET = 0.3  # cores that others may keep busy without being in the way

console = Console(highlight=False, markup=False, soft_wrap=True)
stages: list[Stage] = []


def free_threads(others: float | None, processors: int) -> int | None:
    """
    Choose a number of threads where others compute: two that share a core wait for each other at every operator.

    Parameters
    ----------
    others : float or None
        Cores that others keep busy; None: not known.
    processors : int
        Number of processors that this process may use.

    Returns
    -------
    int or None
        None where the machine is quiet, and every core may be used.
    """
    if others is None or others <= QUIET:
        return None
    return max(1, int(processors - others + QUIET))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder to make (default: demo)")
    parser.add_argument("--epochs", type=int, help="train that long instead of what the presets say, for a quick look")
    arguments = parser.parse_args()
    out: Path = arguments.out
    remove_what_was_made(out)

    scenes, runs, results, bundle, bare = (out / name for name in ("scenes", "runs", "results", "bundle", "bundle-undefended"))
    shorter = [] if arguments.epochs is None else ["--set", f"train.epochs={arguments.epochs}"]
    command("ddcat", "zoo", "fetch", READY, "--out", out / "zoo")
    ready = segment_a_street(out / "zoo/bundle", out / "ready.png")

    command("ddcat", "data", "scenes", scenes)
    for method in METHOD_NAMES:
        command("ddcat", "train", f"scenes-{method}", "--data-root", scenes, "--out", runs / method, *shorter)
    for method in METHOD_NAMES:
        command("ddcat", "attack", runs / method, "--out", results / method)
    command("ddcat", "export", runs / "ddcat", "--engine", "ort", "--out", bundle)
    command("ddcat", "export", runs / "undefended", "--engine", "ort", "--out", bare)
    command("ddcat", "fidelity", bundle, "--out", results / "fidelity")
    command("ddcat", "speed", bundle, "--out", results / "speed")
    sample = open_dataset("scenes", scenes, "val").read(0)
    mask = segment_through_a_server(bundle, sample.name, sample.image, out / "served.png")
    served = Picture(
        "Served",
        f"the answer to POST /v1/segment of {sample.name}: all {sample.labels.size:,} labels are those of the engine",
        mask,
    )

    attacks = [read_result(results / method / "attack.json", AttackResult) for method in METHOD_NAMES]
    statements = robustness_statements(attacks)
    both = shlex.join(["ddcat", "serve", f"undefended={bare}", f"ddc-at={bundle}", "--demo"])
    page = Page(
        statements=statements,
        attacks=attacks,
        panels=look(runs / "undefended", runs / "ddcat"),
        classes=open_bundle(bundle).manifest.class_table(),
        fidelity=read_result(results / "fidelity/fidelity.json", FidelityResult),
        speed=read_result(results / "speed/speed.json", SpeedResult),
        ready=ready,
        served=served,
        stages=stages,
        next_command=both,
    )
    write_text(out / "index.html", render_page(page))

    console.print()
    console.print(table(attacks))
    for statement in statements:
        console.print(f"{'confirmed' if statement.held else 'DID NOT HOLD'}: {statement.claim} ({statement.evidence})")
    console.print(f"\n{sum(done.seconds for done in stages):.0f} s in all")
    console.print(f"look at: {out / 'index.html'}", style="bold")
    console.print(f"next: open the server, with both models side by side: {both}")
    if not all(statement.held for statement in statements):
        fail("the demonstration ran to its end, but what it claims of the defences did not hold", 1)


def remove_what_was_made(out: Path) -> None:
    found = [out / name for name in MADE if (out / name).exists()]
    if found:
        console.print(f"removing what was made before: {', '.join(map(str, found))}")
    for path in found:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextlib.contextmanager
def stage(*words: str | Path) -> Iterator[tuple[list[str], dict[str, str]]]:
    """Print a command as a user would type it, yield it as the system needs it, with its environment, and note its time."""
    name, *arguments = map(str, words)
    typed = shlex.join([name, *arguments])
    console.print(f"\n$ {typed}", style="bold")
    environment = beside_others()
    others, began = watch_contention(), time.monotonic()
    yield [str(Path(sys.executable).with_name(name)), *arguments], environment
    stages.append(Stage(typed, time.monotonic() - began))
    busy = others() or 0.0
    beside = f", others kept {busy:.1f} cores busy meanwhile" if free_threads(busy, processors()) else ""
    console.print(f"{stages[-1].seconds:.0f} s{beside}", style="dim")


def beside_others() -> dict[str, str]:
    """Watch the machine for a moment; where it is busy, say so, and give an environment that leaves their cores to others."""
    others = watch_contention()
    time.sleep(LOOK)
    busy = others()
    threads = free_threads(busy, processors())
    if threads is None:
        return dict(os.environ)
    count = os.environ.get("OMP_NUM_THREADS", str(min(threads, physical_cores())))  # what a user has set stays
    console.print(
        f"the machine is busy: others keep {busy:.1f} of its {processors()} cores at work. This takes longer; threads: {count}",
        style="yellow",
    )
    return {**os.environ, "OMP_NUM_THREADS": count}


def processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def command(*words: str | Path) -> None:
    with stage(*words) as (line, environment):
        check(subprocess.run(line, check=False, env=environment).returncode, line)


def check(status: int, line: list[str]) -> None:
    if status:
        status = 128 - status if status < 0 else status  # of a process that a signal ended
        fail(f"{shlex.join([Path(line[0]).name, *line[1:]])} ended with exit status {status}", status)


def fail(message: str, status: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(status)


def segment_a_street(bundle: Path, answer: Path) -> Panel:
    """Serve a model of the zoo, and send it the first of its golden images: no training comes before."""
    image = read_golden(open_bundle(bundle))[0].image
    mask = segment_through_a_server(bundle, "a golden image", image, answer)
    sent = Picture("Image", "a street of CamVid, one of the bundle's golden images", to_png(image))
    return Panel(READY, (sent, Picture("Mask", f"the answer of {READY} in int8", mask)))


def segment_through_a_server(bundle: Path, name: str, image: npt.NDArray[np.uint8], answer: Path) -> bytes:
    """Start a server, send it one image, and stop it; its answer must be that of the engine called directly."""
    with (
        stage("ddcat", "serve", bundle, "--port", "0"),
        served(bundle, say=lambda line: console.print(f"  {line}")) as address,
    ):
        console.print(f"  {name} to POST {address}/v1/segment")
        mask = ask(address, image)
    write_bytes(answer, mask)
    with Image.open(io.BytesIO(mask)) as opened, open_engine(open_bundle(bundle)) as engine:
        labels = engine.infer(image[None]).labels[0]
        if opened.mode != "P" or not np.array_equal(np.asarray(opened), labels):
            fail(f"the server's answer, {answer}, is not what the engine says when it is called directly", 1)
    return mask


def look(undefended: Path, defended: Path) -> list[Panel]:
    cpu = torch_device("cpu")
    bare, robust = (load_checkpoint(run_directory) for run_directory in (undefended, defended))
    return make_panels(main_branch(bare, cpu), main_branch(robust, cpu), open_split(bare), defence=METHOD_NAMES["ddcat"])


def table(attacks: list[AttackResult]) -> Table:
    labels = ["clean", *(f"n = {n}" for n in range(1, 8))]
    shown = Table(title="mIoU on clean images and after n steps of BIM", title_justify="left")
    shown.add_column("method")
    for label in labels:
        shown.add_column(label, justify="right", no_wrap=True)
    for result in attacks:
        found = [result.find(label) for label in labels]
        shown.add_row(METHOD_NAMES[result.checkpoint.method], *(f"{row.scores.miou:.3f}" if row else "-" for row in found))
    return shown


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that no child outlives it
    try:
        run(main)
    except KeyboardInterrupt:
        fail("interrupted", 128 + signal.SIGINT)
