"""
The engines of the zoo's models beside PyTorch: labels and time.

    python bench/zoo/engines.py --data-root data/camvid

Every stored checkpoint is exported in fp32 for ONNX Runtime and in bf16 for OpenVINO; int8 is the stored engine. All label the
same images of the validation split, spread evenly. Labels are compared with those of PyTorch in fp32. Times are medians of one
image, from uint8 to labels, on one thread, which other work on the machine disturbs least; engines and PyTorch take turns,
image by image. Existing figures are not measured again: remove docs/results/zoo/NAME/engines.json to do so. At the end
docs/results/zoo.md is made anew.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from make import RESULTS, ZOO, page

from ddcat import provenance
from ddcat.atomic_files import write_json, write_text
from ddcat.bundle import open_bundle
from ddcat.cli_support import run
from ddcat.engines import open_engine
from ddcat.errors import DdcatError
from ddcat.zoo.index import Entry, read_index
from ddcat_train.checkpoints import load_checkpoint
from ddcat_train.data import open_dataset
from ddcat_train.data.loader import evaluation_plan
from ddcat_train.pixels import to_planes

ENGINES = {"fp32": ("ort", "fp32"), "bf16": ("openvino", "bf16"), "int8": None}  # None: as it is stored
IMAGES = 24
THREADS = 1
LIBRARIES = ("torch", "onnxruntime", "openvino", "numpy")

U8 = npt.NDArray[np.uint8]


def main() -> None:
    """Measure the models that have no figures yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("build/zoo"))
    given = parser.parse_args()
    for model in read_index().models:
        out = RESULTS / model.name / "engines.json"
        if not out.exists():
            write_json(out, measure(model, given.data_root, given.work / model.name))
            print(out, flush=True)
    write_text(RESULTS.with_suffix(".md"), page(read_index()))


def measure(model: Entry, data_root: Path, work: Path) -> dict[str, Any]:
    """Let PyTorch and all engines label the same images in turns."""
    checkpoint = load_checkpoint(ZOO / model.checkpoint.name)
    data = checkpoint.description.config.data
    split = open_dataset(data.name, data_root, data.val_split, rule=data.rule(evaluation=True))
    images = [split.read(index).image[None] for plan in evaluation_plan(split, batch_size=1, limit=IMAGES) for index in plan]
    network = checkpoint.segmenter().eval()
    torch.set_num_threads(THREADS)

    def by_pytorch(image: U8) -> U8:
        with torch.inference_mode():
            labels: U8 = network(to_planes(image)).argmax(1).to(torch.uint8).numpy()  # (1, H, W)
        return labels

    with ExitStack() as stack:
        found: dict[str, Callable[[U8], U8]] = {"pytorch": by_pytorch}
        for name in ENGINES:
            engine = stack.enter_context(open_engine(open_bundle(bundle(model, name, data_root, work)), threads=THREADS))
            found[name] = lambda image, engine=engine: engine.infer(image).labels  # type: ignore[misc]
        labels, seconds = in_turns(found, images)
    equal = {name: float(np.mean(labels[name] == labels["pytorch"])) for name in ENGINES}
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "images": len(images),
        "shape": list(images[0].shape),
        "threads": THREADS,
        "equal_labels": equal,
        "median_seconds": medians,
        "times_as_fast": {name: medians["pytorch"] / medians[name] for name in ENGINES},
        "machine": provenance.machine(),
        "versions": provenance.versions(LIBRARIES),
    }


def bundle(model: Entry, name: str, data_root: Path, work: Path) -> Path:
    """Return the bundle of an engine, made where it is missing."""
    out = work / name
    if not out.exists():
        work.mkdir(parents=True, exist_ok=True)
        kind = ENGINES[name]
        if kind is None:
            words = ["zoo", "fetch", model.name, "--from", str(ZOO), "--out", str(work / "fetched")]
        else:
            source, (engine, precision) = ZOO / model.checkpoint.name, kind
            words = [
                "export",
                str(source),
                "--engine",
                engine,
                "--precision",
                precision,
                "--data-root",
                str(data_root),
                "--out",
                str(out),
            ]
        if subprocess.run([sys.executable, "-m", "ddcat", *words], check=False).returncode:
            raise DdcatError(f"{' '.join(words)} failed")
        if kind is None:
            (work / "fetched" / "bundle").rename(out)
    return out


def in_turns(contenders: dict[str, Callable[[U8], U8]], images: list[U8]) -> tuple[dict[str, U8], dict[str, list[float]]]:
    """Let each label every image once unmeasured and twice measured; returns labels (N, H, W) and seconds."""
    labels: dict[str, list[U8]] = {name: [] for name in contenders}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(3):
        for image in images:
            for name, label in contenders.items():
                began = time.perf_counter()
                found = label(image)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
                else:
                    labels[name].append(found)
    return {name: np.concatenate(found) for name, found in labels.items()}, seconds


if __name__ == "__main__":
    run(main)
