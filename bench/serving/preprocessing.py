"""
Score original files over HTTP, beside the gate's own count, and what a client's own resizing changes.

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
THE_RULE = "the bundle's rule, by the server"
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


PAGE = """# What a client's own resizing changes

A bundle says how image files become the input of its graph, and the server does it
([preprocessing](../serving.md#preprocessing)). Here all {images} files of {data}, JPEG of 480x360, were sent to `ddcat serve`
as they are. The bundle's rule resizes them to a long side of {to} (`{kernel}`). The masks came back at 480x360, and were
compared with the label files. The gate's count of its clean images gives {gate:.6f} points, and its true and false pixels of
all {classes} classes are {equal} to those over HTTP.

A client that resizes files itself was imitated, with other kernels; its masks were enlarged by nearest neighbour:

{rows}

The model is {architecture}, trained without a defence on CamVid at a long side of {to}, from the middle of a run: one model,
one data set, clean images alone. A kernel that the model was not judged with changes its score, to either side; which one is
right is for training and the gate to say, and not for a client. Halving a side, OpenCV's INTER_LINEAR is its INTER_AREA. In
the last row the model sees files at their own size, which a server of bundles of schema 2 lets happen.

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
        rows=table(["who resizes, and how", "mIoU, points", "less the gate's"], rows).rstrip(),
        architecture=result["architecture"],
    )


if __name__ == "__main__":
    run(main)
