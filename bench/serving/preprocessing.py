"""
Score original files over HTTP, compare with the gate's score, and measure the effect of resizing in the client.

    python bench/serving/preprocessing.py BUNDLE --out docs/results/preprocessing

Every file of the bundle's validation split is sent to `ddcat serve BUNDLE` as it is, and the mask is compared with its label
file as it is. The gate's count is that of its clean images. A client that resizes files itself, and sends the result as a PNG
with ?preprocessed=true, is imitated on the engine: with Pillow's and OpenCV's kernels, and without resizing. Its masks get the
size of the file by nearest neighbour. It writes OUT.json and OUT.md.
"""

import argparse
import io
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from ddcat import provenance
from ddcat.atomic_files import write_json, write_text
from ddcat.bundle import open_bundle
from ddcat.cli_support import run
from ddcat.engines import Engine, open_engine
from ddcat.metrics import Counts, confusion_counts, miou
from ddcat.preprocess import network_size, restore
from ddcat_bench.attack.scoring import count_victims
from ddcat_bench.gate.job import GateJob
from ddcat_bench.gate.measurements import gate_batches
from ddcat_bench.gate.pool import engine_labels
from ddcat_bench.inputs import open_bundle_data, reference_of
from ddcat_bench.markdown import table
from ddcat_train.data import Dataset
from ddcat_train.pixels import to_8_bit

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
from server_process import served

U8 = npt.NDArray[np.uint8]
Kernel = Callable[[U8, tuple[int, int]], U8]  # image and (width, height)
THE_RULE = "the server, by the bundle's rule"
KERNELS: dict[str, Kernel] = {
    "OpenCV, INTER_AREA": lambda image, size: cv2.resize(image, size, interpolation=cv2.INTER_AREA),
    "OpenCV, INTER_LINEAR": lambda image, size: cv2.resize(image, size, interpolation=cv2.INTER_LINEAR),
    "OpenCV, INTER_NEAREST": lambda image, size: cv2.resize(image, size, interpolation=cv2.INTER_NEAREST),
    "Pillow, BILINEAR": lambda image, size: np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR)),
    "Pillow, BICUBIC": lambda image, size: np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)),
    "none: files at their own size": lambda image, size: image,
}


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data-root", type=Path, help="where the data set lies now")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    rule = bundle.manifest.preprocessing
    dataset = open_bundle_data(bundle, data_root=options.data_root)
    whole = dataset.with_long_side(None)  # images and labels as the files have them, turned where EXIF counts
    classes = len(dataset.classes)
    with open_engine(bundle) as engine:
        job = GateJob(bundle, reference_of(bundle), dataset)
        by_gate = np.sum([counts for _, counts in _of_the_gate(job, engine)], axis=0)
        asked = {name: np.zeros((classes, 3), np.int64) for name in KERNELS}
        for index in range(len(whole)):
            sample = whole.read(index)
            height, width = network_size(sample.labels.shape, rule)
            for name, resize in KERNELS.items():
                labels = engine.infer(np.ascontiguousarray(resize(sample.image, (width, height)))[None]).labels[0]
                asked[name] += confusion_counts(sample.labels, restore(labels, sample.labels.shape), classes)
    by_http = _over_http(options.bundle, whole, classes)
    scores = {THE_RULE: by_http} | asked
    result = {
        "bundle": bundle.digest,
        "data": f"{dataset.name}, {dataset.split}",
        "images": len(dataset),
        "rule": rule.model_dump(mode="json", include={"orientation", "resize"}),
        "architecture": bundle.manifest.source.architecture,
        "points": {name: 100 * miou(counts) for name, counts in scores.items()},
        "gate": 100 * miou(by_gate),
        "equal_to_the_gate": bool(np.array_equal(by_http, by_gate)),
        "counts": {name: counts.tolist() for name, counts in scores.items()},
        "machine": provenance.machine(),
        "versions": provenance.versions(("numpy", "opencv-python-headless", "Pillow", "onnxruntime", "simplejpeg")),
        "git_commit": provenance.git_commit(),
    }
    write_json(options.out.with_suffix(".json"), result)
    write_text(options.out.with_suffix(".md"), _page(result, classes))
    if not result["equal_to_the_gate"]:
        raise SystemExit("the score over HTTP is not the gate's")


def _of_the_gate(job: GateJob, engine: Engine) -> list[tuple[str, Counts]]:
    found: list[tuple[str, Counts]] = []
    for names, victims in gate_batches(job, job.images):
        labels = engine_labels(engine, to_8_bit(victims.images, victims.images))
        found += zip(names, count_victims(victims, torch.from_numpy(labels), len(job.dataset.classes)), strict=True)
    return found


def _over_http(bundle: Path, whole: Dataset, classes: int) -> Counts:
    counts = np.zeros((classes, 3), np.int64)
    with served(bundle) as address:
        for index, pair in enumerate(whole.pairs):
            with urllib.request.urlopen(f"{address}/v1/segment", pair.image.read_bytes()) as response:
                mask = np.asarray(Image.open(io.BytesIO(response.read())))
            counts += confusion_counts(whole.read(index).labels, mask, classes)
    return counts


PAGE = """# Resizing in the client

A bundle holds the rule by which image files become the input of its graph, and the server applies it
([preprocessing](../serving.md#preprocessing)). For this page all {images} files of {data}, JPEG of 480x360, were sent to
`ddcat serve` unchanged. The bundle's rule resizes them to a long side of {to} (`{kernel}`). The server returned masks of
480x360, which were compared with the label files. On its clean images the gate has {gate:.6f} points. Its pixel counts for
all {classes} classes are {equal} to those over HTTP.

We also imitated a client that resizes the files itself with other kernels, and enlarges the masks by nearest neighbour:

{rows}

The model is {architecture}, trained without a defence on CamVid at a long side of {to}, and taken from the middle of a run.
This is one model, one data set and clean images only. A kernel other than that of the evaluation changes the score, up or
down. So use the kernel of the training and the gate, and let the server resize. OpenCV's INTER_LINEAR and INTER_AREA give the
same result when a side is halved. In the last row the model sees the files at their own size. This is what a server does with
a bundle of schema 2, which has no rule.

```sh
ddcat export RUN/best.safetensors --out bundle
python bench/serving/preprocessing.py bundle --out docs/results/preprocessing
```

Machine, versions and counts are in [preprocessing.json](preprocessing.json).
"""


def _page(result: dict[str, Any], classes: int) -> str:
    points, gate, resize = result["points"], result["gate"], result["rule"]["resize"]
    rows = [[name, f"{value:.3f}", f"{value - gate:+.3f}"] for name, value in points.items()]
    return PAGE.format(
        images=result["images"],
        data=result["data"],
        to=resize["to"],
        kernel=resize["kernel"],
        gate=gate,
        classes=classes,
        equal="equal" if result["equal_to_the_gate"] else "**not** equal",
        rows=table(["resized by", "mIoU, points", "minus the gate's"], rows).rstrip(),
        architecture=result["architecture"],
    )


if __name__ == "__main__":
    run(main)
