"""
How far ONNX Runtime agrees with itself in int8: labels of one file at its four levels of optimisation, and those of the twin.

    python bench/cpu/int8_optimisation_levels.py BUNDLE --data-root /data/camvid --images 6 --out int8-levels.json
"""

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import onnxruntime  # noqa: TID251 -- its levels of optimisation are what is compared
import torch

from ddcat.atomic_files import write_text
from ddcat.bundle import open_bundle
from ddcat.cli_support import run
from ddcat_bench.inputs import open_bundle_data
from ddcat_export.twin.twin import Twin
from ddcat_train.pixels import to_planes

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def main() -> None:
    """Compare, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--images", type=int, default=6, help="spread evenly over the validation split")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    bundle = open_bundle(arguments.bundle)
    content = bundle.files[bundle.manifest.engine.file]
    dataset = open_bundle_data(bundle, data_root=arguments.data_root)
    places = np.linspace(0, len(dataset) - 1, arguments.images).round().astype(int)
    images = np.stack([dataset.read(int(place)).image for place in places])
    labels = {level: label(content, level, images) for level in LEVELS}
    with torch.no_grad():
        twin = Twin(content)(to_planes(images)).argmax(1).numpy()
    found = {
        "bundle": bundle.digest,
        "runtime": f"onnxruntime {onnxruntime.__version__}",
        "images": arguments.images,
        "alike": {f"{a}, {b}": float((labels[a] == labels[b]).mean()) for a, b in itertools.combinations(LEVELS, 2)},
        "twin": float((twin == labels[LEVELS[-1]]).mean()),
    }
    write_text(arguments.out, json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def label(content: bytes, level: str, images: np.ndarray) -> np.ndarray:
    """Let the runtime label images at a level of optimisation."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.add_session_config_entry("session.qdqisint8allowed", "1")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: np.ndarray = session.run(["labels"], {"image": images})[0]
    return found


if __name__ == "__main__":
    run(main)
