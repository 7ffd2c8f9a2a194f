"""
The throughput of `ddcat predict` beside that of the bare engine, in one run.

    python bench/cpu/predict_speed.py BUNDLE FOLDER [--turns 3] [--out FILE.json]

Both get the same images, and have the same threads. The bare engine gets them decoded and prepared, one image after the other,
each computed by all threads; its masks are thrown away. `predict` reads and decodes the files, computes several images at a
time with a share of the threads each, as the command does, and writes masks, run lengths and records. The two take turns; a
ratio is that of the medians. `ratio` is of seconds, and `cpu_ratio` of CPU seconds, which other work on the machine changes
less. An engine with one thread an image may need fewer CPU seconds than the bare one: both ratios may be above 1.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from ddcat.engines.cores import physical_cores
from ddcat.engines.predictor import Predictor, open_bundle
from ddcat.predict.compute import compute, useful_streams
from ddcat.predict.images import read_picture
from ddcat.predict.records import Job
from ddcat.predict.results import Results
from ddcat.predict.sources import find_sources


def main() -> None:
    """Measure, and print or write the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    sources = find_sources([arguments.folder])
    bare: list[tuple[float, float]] = []
    whole: list[tuple[float, float]] = []
    threads = arguments.threads or physical_cores()
    streams = useful_streams(sources, batch=1, threads=threads)
    with (
        open_bundle(arguments.bundle, threads=threads) as opened,
        open_bundle(arguments.bundle, threads=threads, streams=streams) as divided,
    ):
        rule = opened.bundle.manifest.preprocessing
        images = [read_picture(source.read(), rule).pixels for source in sources]
        for image in images[:3]:
            opened.infer(image[None])
            divided.infer(image[None])
        for _ in range(arguments.turns):
            started = now()
            for image in images:
                opened.infer(np.ascontiguousarray(image[None]))
            bare.append(since(started))
            with tempfile.TemporaryDirectory() as folder:
                results = Results(Path(folder), job(divided))
                started = now()
                compute(divided, sources, results, batch=1, failures={})
                whole.append(since(started))
    result = {
        "images": len(sources),
        "bare_seconds": [seconds for seconds, _ in bare],
        "predict_seconds": [seconds for seconds, _ in whole],
        "ratio": statistics.median(seconds for seconds, _ in bare) / statistics.median(seconds for seconds, _ in whole),
        "bare_cpu_seconds": [cpu for _, cpu in bare],
        "predict_cpu_seconds": [cpu for _, cpu in whole],
        "cpu_ratio": statistics.median(cpu for _, cpu in bare) / statistics.median(cpu for _, cpu in whole),
        "cpus": len(os.sched_getaffinity(0)),
        "load": os.getloadavg(),
        "machine": platform.processor() or platform.machine(),
        "engine": dict(opened.description),
        "streams": divided.streams,
    }
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.out is not None:
        arguments.out.write_text(text + "\n", encoding="utf-8")


def now() -> tuple[float, float]:
    """Return the time and the CPU time of this process, in seconds."""
    return time.perf_counter(), time.process_time()


def since(started: tuple[float, float]) -> tuple[float, float]:
    """Return what has passed of both."""
    wall, cpu = now()
    return wall - started[0], cpu - started[1]


def job(opened: Predictor) -> Job:
    """Return what `predict` would note of its work by default."""
    return Job(bundle=opened.bundle.digest, formats=("coco", "png"), batch=1, engine=Job.settings_of(opened.description))


if __name__ == "__main__":
    main()
